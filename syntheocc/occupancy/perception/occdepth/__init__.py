"""OccDepth: semantic scene completion from a stereo pair, with depth that knows about occupancy (specs/occdepth.md)."""
