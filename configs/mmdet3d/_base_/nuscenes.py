# What every use of nuScenes with mmdet3d's order of classes shares.
data_root = 'data/nuscenes/'
data_version = 'v1.0-trainval'
class_names = [
    'car',
    'truck',
    'trailer',
    'bus',
    'construction_vehicle',
    'bicycle',
    'motorcycle',
    'pedestrian',
    'traffic_cone',
    'barrier',
]
point_cloud_range = [-54.0, -54.0, -5.0, 54.0, 54.0, 3.0]
