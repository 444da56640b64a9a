"""What a camera or a sensor sees of an occupancy grid: semantic multiplane images and cast rays."""
