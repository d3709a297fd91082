# What every use of nuScenes with mmdet3d's order of classes shares.
_base_ = './nuscenes_classes.py'
data_root = 'data/nuscenes/'
data_version = 'v1.0-trainval'
point_cloud_range = [-54.0, -54.0, -5.0, 54.0, 54.0, 3.0]
