"""OccDepth: semantic scene completion from a stereo pair, with depth that knows occupancy (specs/occdepth.md)."""
