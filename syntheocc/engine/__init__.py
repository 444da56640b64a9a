"""What every job needs whatever it trains: atomic files, checkpoints, ranks, the loop. No diffusers in here."""
