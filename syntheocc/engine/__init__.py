"""What every job needs whatever it trains: atomic files, checkpoints, ranks, the loop. Nothing here knows diffusers."""
