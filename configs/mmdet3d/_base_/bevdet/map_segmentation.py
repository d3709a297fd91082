# Map segmentation with BEVFusion's classes, raster and thresholds, to be put in the places of boxes. Labels are drawn from nuScenes' map
# expansion 1.3 in data/nuscenes/maps/expansion.
map_grid = dict(x=[-50.0, 50.0, 0.5], y=[-50.0, 50.0, 0.5])
map_classes = ['drivable_area', 'ped_crossing', 'walkway', 'stop_line', 'carpark_area', 'divider']
map_head = dict(type='BEVMapSegHead', in_channels=256, classes=map_classes, map_grid=map_grid)
map_labels = dict(type='LoadBEVMapLabels', data_root='data/nuscenes/', classes=map_classes, map_grid=map_grid)
map_evaluator = dict(type='BEVMapIoU', thresholds=[0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65])
