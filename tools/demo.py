"""Pretrain a small GeoMIM through mmdet3d's own training script: on a nuScenes folder, or on frames that are generated.

    python tools/demo.py                                   # generated frames
    python tools/demo.py --data /datasets/nuscenes         # real data; its info files are made if they are missing

An interrupted run goes on where its last checkpoint was.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import List, Tuple

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / 'configs' / 'mmdet3d' / 'pretrain'
VERSIONS = ('v1.0-trainval', 'v1.0-mini')


def say(text: str) -> None:
    print(text, flush=True)


def mmdet3d_tools() -> Path:
    """The scripts inside the installed mmdet3d."""
    import mmdet3d

    tools = Path(mmdet3d.__file__).parent / '.mim' / 'tools'
    if not (tools / 'train.py').is_file():
        tools = Path(mmdet3d.__file__).parent.parent / 'tools'  # a source checkout
    if not (tools / 'train.py').is_file():
        raise SystemExit(
            f'mmdet3d in {Path(mmdet3d.__file__).parent} has no tools/train.py; install it with pip or from its repository'
        )
    return tools


def nuscenes_version(root: Path) -> str:
    """The version folder that a nuScenes root holds."""
    found = [version for version in VERSIONS if (root / version / 'sample.json').is_file()]
    if not found:
        raise SystemExit(
            f'{root} is no nuScenes root: it has neither {VERSIONS[0]}/sample.json nor {VERSIONS[1]}/sample.json. '
            'DATA must name the folder that holds samples/, sweeps/, maps/ and a version folder.'
        )
    return found[0]


def make_infos(root: Path, version: str, work: Path) -> Path:
    """Info files by mmdet3d's converter, which insists on the path ./data/nuscenes; they go to ``work``, never into the data folder."""
    view, stamp = work / 'data' / 'nuscenes', work / 'data' / 'complete'
    if stamp.is_file():
        if stamp.read_text() != str(root):
            raise SystemExit(f'{work} belongs to DATA={stamp.read_text()}, not {root}: give another OUT')
        return view
    view.mkdir(parents=True, exist_ok=True)
    for entry in root.iterdir():
        link = view / entry.name
        if not link.exists() and not entry.name.endswith('.pkl'):
            link.symlink_to(entry.resolve())
    existing = [root / f'nuscenes_infos_{split}.pkl' for split in ('train', 'val')]
    if all(path.is_file() for path in existing):
        for path in existing:
            if not (view / path.name).exists():
                (view / path.name).symlink_to(path.resolve())
        stamp.write_text(str(root))
        return view
    say(
        f"Making the info files of {root} with mmdet3d's converter (once; minutes for v1.0-mini, hours for v1.0-trainval) ..."
    )
    code = (
        'from mmdet3d.utils import register_all_modules; register_all_modules()\n'
        'import sys; sys.argv = ["create_data.py", "nuscenes"]\n'
        f'sys.path.insert(0, {str(mmdet3d_tools())!r}); sys.path.insert(0, {str(mmdet3d_tools().parent)!r})\n'
        'from dataset_converters import nuscenes_converter\n'
        'from dataset_converters.update_infos_to_v2 import update_pkl_infos\n'
        f'nuscenes_converter.create_nuscenes_infos("data/nuscenes", "nuscenes", version={version!r}, max_sweeps=10)\n'
        'for split in ("train", "val"):\n'
        '    update_pkl_infos("nuscenes", out_dir="data/nuscenes", pkl_path=f"data/nuscenes/nuscenes_infos_{split}.pkl")\n'
    )
    subprocess.run([sys.executable, '-c', code], cwd=work, check=True)
    stamp.write_text(str(root))  # last: an interrupted conversion is done again
    return view


def prepare(arguments: argparse.Namespace) -> Tuple[Path, List[str]]:
    """The configuration and the options that point it to the data."""
    if arguments.data:
        root = Path(arguments.data).expanduser().resolve()
        if not root.is_dir():
            raise SystemExit(f'DATA={arguments.data}: no such folder')
        version = nuscenes_version(root)
        data = make_infos(root, version, arguments.out)
        config = CONFIGS / 'geomim_tiny_cpu.py'
    else:
        from geomim.synthetic.frame import write_frame

        say('No DATA given: generating four frames with six cameras and LiDAR ...')
        data, version = write_frame(arguments.out / 'frame'), 'v1.0-mini'
        config = CONFIGS / 'geomim_tiny_cpu_frame.py'
    options = []
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        options += [f'{loader}.dataset.data_root={data}/', f'{loader}.dataset.metainfo.version={version}']
    return config, options


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        '--data', default='', help='nuScenes root (samples/, sweeps/, maps/, v1.0-*); default: generated frames'
    )
    parser.add_argument('--out', type=Path, default=ROOT / 'work_dirs' / 'demo', help='where the results go')
    parser.add_argument('--config', type=Path, help='another pretraining configuration')
    parser.add_argument('--iterations', type=int, default=60)
    arguments = parser.parse_args()
    arguments.out = arguments.out.expanduser().resolve()
    arguments.out.mkdir(parents=True, exist_ok=True)
    config, options = prepare(arguments)
    run = arguments.out / 'run'
    options += [f'iterations={arguments.iterations}', f'train_cfg.max_iters={arguments.iterations}']
    options += [f'train_cfg.val_interval={arguments.iterations}', f'param_scheduler.1.T_max={arguments.iterations}']
    options += [f'param_scheduler.1.end={arguments.iterations}']
    command = [
        sys.executable,
        str(mmdet3d_tools() / 'train.py'),
        str(arguments.config or config),
        '--work-dir',
        str(run),
        '--resume',
    ]
    finished = run / f'iter_{arguments.iterations}.pth'
    if finished.is_file():
        say(f'{finished} exists: this run is complete. Give another OUT, or remove {run}, to run again.')
    else:
        say(f'Pretraining for {arguments.iterations} iterations; the log is also written under {run} ...')
        environment = {**os.environ, 'PYTHONWARNINGS': 'ignore'}
        subprocess.run([*command, '--cfg-options', *options], check=True, env=environment, cwd=ROOT)
    report(run)


def report(run: Path) -> None:
    """Where everything lies."""
    logs = sorted(run.glob('*/*.log'))
    pictures = sorted(run.glob('*/vis_data/vis_image/*.png'))
    say('\nDone.')
    for title, paths in (
        ('checkpoint', sorted(run.glob('iter_*.pth'), key=lambda path: path.stat().st_mtime)[-1:]),
        ('encoder for finetuning', sorted(run.glob('encoder*.pth'))),
        ('log', logs[-1:]),
        ('pictures', pictures),
    ):
        for path in paths:
            say(f'  {title + ":":<24}{path}')
    say(f'  {"TensorBoard:":<24}tensorboard --logdir {run}')


if __name__ == '__main__':
    try:
        main()
    except subprocess.CalledProcessError as error:
        raise SystemExit(
            f'{Path(error.cmd[1]).name} stopped with exit status {error.returncode}; its messages are above'
        ) from error
    except KeyboardInterrupt:
        raise SystemExit('\nInterrupted; the same command goes on from the last checkpoint.') from None
