"""What every job needs whatever it trains: atomic files and safe unpickling. Nothing here knows diffusers."""
