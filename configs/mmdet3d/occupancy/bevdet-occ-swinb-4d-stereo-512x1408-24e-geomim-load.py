# The same from a detection checkpoint, published with mIoU 45.73. The file is that of
# finetune/bevdet-swinb-4d-stereo-512x1408-cbgs-geomim.py with its windows resized:
#   python -m geomim convert DETECTOR.pth checkpoints/bevdet-stereo-geomim-512x1408.pth --to mmdet3d --window 16 16 16 16
_base_ = './bevdet-occ-swinb-4d-stereo-512x1408-24e-geomim.py'
load_from = 'checkpoints/bevdet-stereo-geomim-512x1408.pth'
