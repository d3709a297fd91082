"""Names and numbers of nuScenes: categories with their LiDAR segmentation labels, detection classes, occupancy classes."""

from __future__ import annotations

from typing import Dict, Tuple

# nuScenes-lidarseg: the position is the label
CATEGORIES: Tuple[str, ...] = (
    'noise', 'animal', 'human.pedestrian.adult', 'human.pedestrian.child', 'human.pedestrian.construction_worker',
    'human.pedestrian.personal_mobility', 'human.pedestrian.police_officer', 'human.pedestrian.stroller',
    'human.pedestrian.wheelchair', 'movable_object.barrier', 'movable_object.debris',
    'movable_object.pushable_pullable', 'movable_object.trafficcone', 'static_object.bicycle_rack', 'vehicle.bicycle',
    'vehicle.bus.bendy', 'vehicle.bus.rigid', 'vehicle.car', 'vehicle.construction', 'vehicle.emergency.ambulance',
    'vehicle.emergency.police', 'vehicle.motorcycle', 'vehicle.trailer', 'vehicle.truck', 'flat.driveable_surface',
    'flat.other', 'flat.sidewalk', 'flat.terrain', 'static.manmade', 'static.other', 'static.vegetation', 'vehicle.ego',
)  # fmt: skip
LABELS: Dict[str, int] = {name: label for label, name in enumerate(CATEGORIES)}

# detection class -> category that stands for it here
DETECTION: Dict[str, str] = {
    'car': 'vehicle.car',
    'truck': 'vehicle.truck',
    'trailer': 'vehicle.trailer',
    'bus': 'vehicle.bus.rigid',
    'construction_vehicle': 'vehicle.construction',
    'bicycle': 'vehicle.bicycle',
    'motorcycle': 'vehicle.motorcycle',
    'pedestrian': 'human.pedestrian.adult',
    'traffic_cone': 'movable_object.trafficcone',
    'barrier': 'movable_object.barrier',
}
ATTRIBUTES: Tuple[str, ...] = (
    'vehicle.moving', 'vehicle.stopped', 'vehicle.parked', 'cycle.with_rider', 'cycle.without_rider',
    'pedestrian.sitting_lying_down', 'pedestrian.standing', 'pedestrian.moving',
)  # fmt: skip
# visibility token -> share of an object's pixels that some camera sees
VISIBILITY: Tuple[Tuple[str, str, float], ...] = (
    ('1', 'v0-40', 0.4), ('2', 'v40-60', 0.6), ('3', 'v60-80', 0.8), ('4', 'v80-100', 1.01),
)  # fmt: skip

# Occ3D-nuScenes: occupancy class of each category; 0 is 'others', 17 'free'
FREE = 17
_OCCUPANCY = {
    'movable_object.barrier': 1, 'vehicle.bicycle': 2, 'vehicle.bus.bendy': 3, 'vehicle.bus.rigid': 3, 'vehicle.car': 4,
    'vehicle.construction': 5, 'vehicle.motorcycle': 6, 'human.pedestrian.adult': 7, 'movable_object.trafficcone': 8,
    'vehicle.trailer': 9, 'vehicle.truck': 10, 'flat.driveable_surface': 11, 'flat.other': 12, 'flat.sidewalk': 13,
    'flat.terrain': 14, 'static.manmade': 15, 'static.vegetation': 16,
}  # fmt: skip
OCCUPANCY: Tuple[int, ...] = tuple(_OCCUPANCY.get(name, 0) for name in CATEGORIES)
