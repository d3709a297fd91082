"""A small world in the nuScenes format: streets, sensors, labels, all exact. ``python -m geomim synthesize`` makes one."""
