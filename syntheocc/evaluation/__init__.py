"""Whether generated views follow the occupancy: a judge, paired bootstrap, view consistency, kernel distance and more.

Nothing here knows how the views were made: functions take images, labels, grids and rigs.
`benchmarks/controllability.py` puts them together.
"""
