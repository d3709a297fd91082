"""Checkpoints through mmengine's own loaders: nothing that a file or an address holds is executed, addresses are cached."""

from __future__ import annotations

import io
import shutil
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip('mmengine')

from mmengine.fileio import FileClient
from mmengine.logging import MessageHub
from mmengine.model import BaseModel
from mmengine.runner import Runner
from mmengine.runner.checkpoint import CheckpointLoader

import geomim.mmengine  # noqa: F401 - installs the safe reader

from ..helpers import Attack

ADDRESS = 'https://example.org/models/evil-00000000.pth'


def register(name: str, content: Any, web: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An address of one kind under which the host finds ``content``."""
    torch.save(content, web / Path(ADDRESS).name)
    if name == 's3':
        data = (web / Path(ADDRESS).name).read_bytes()
        monkeypatch.setattr(FileClient, '__new__', lambda *_, **__: types.SimpleNamespace(get=lambda _: data))
        monkeypatch.setattr('mmengine.runner.checkpoint.get_file_backend', lambda *_, **__: FileClient())
        return 's3://bucket/evil.pth'
    if name == 'pavi':
        model = types.SimpleNamespace(
            name='evil.pth', download=lambda target: shutil.copy(web / Path(ADDRESS).name, target)
        )
        cloud = types.SimpleNamespace(get=lambda _: model)
        monkeypatch.setitem(sys.modules, 'pavi', types.SimpleNamespace(modelcloud=cloud))
        return 'pavi://evil'
    if name == 'open-mmlab, a local file':
        home = web.parent / 'home'
        home.mkdir()
        shutil.copy(web / Path(ADDRESS).name, home / 'evil.pth')
        monkeypatch.setenv('MMENGINE_HOME', str(home))
        monkeypatch.setattr('mmengine.runner.checkpoint.get_external_models', lambda: {'evil': 'evil.pth'})
        return 'open-mmlab://evil'
    if name == 'of a plugin':
        data = (web / Path(ADDRESS).name).read_bytes()
        monkeypatch.setattr(CheckpointLoader, '_schemes', dict(CheckpointLoader._schemes))

        def load_from_plugin(filename: str, map_location: Any) -> Any:
            return torch.load(io.BytesIO(data), map_location=map_location, weights_only=False)

        CheckpointLoader.register_scheme('plugin://', load_from_plugin)
        return 'plugin://evil'
    lists = {'open-mmlab': 'get_external_models', 'torchvision': 'get_torchvision_models', 'mmcls': 'get_mmcls_models'}
    if name in lists:
        monkeypatch.setattr(f'mmengine.runner.checkpoint.{lists[name]}', lambda: {'evil': ADDRESS})
        return f'{name}://evil'
    return ADDRESS


KINDS = ['https', 's3', 'pavi', 'open-mmlab', 'open-mmlab, a local file', 'torchvision', 'mmcls', 'of a plugin']


@pytest.mark.parametrize('kind', KINDS)
def test_no_loader_of_the_host_executes_a_file(kind: str, web: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = web / 'ran'
    address = register(
        kind, {'state_dict': {'backbone.a': torch.ones(1)}, 'x': Attack(open, str(marker), 'w')}, web, monkeypatch
    )
    with pytest.raises(ValueError, match='refused for safety'):
        CheckpointLoader.load_checkpoint(address, map_location='cpu')
    assert not marker.exists()


@pytest.mark.parametrize('kind', KINDS)
def test_every_loader_of_the_host_still_reads_weights(kind: str, web: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.load, torch.hub.download_url_to_file
    carried = types.SimpleNamespace(epochs=3)
    content = {'state_dict': {'backbone.a': torch.ones(1)}, 'args': carried}
    loaded = CheckpointLoader.load_checkpoint(register(kind, content, web, monkeypatch), map_location='cpu')
    assert torch.equal(next(iter(loaded['state_dict'].values())), torch.ones(1))
    assert not isinstance(loaded.get('args'), types.SimpleNamespace)
    assert (torch.load, torch.hub.download_url_to_file) == before


def test_without_a_network_the_message_says_where_the_file_goes(web: Path) -> None:
    with pytest.raises(
        ValueError, match=r'no network.*put that file at \S+cache\S+evil-00000000.pth, or give the path'
    ):
        CheckpointLoader.load_checkpoint(ADDRESS)


@pytest.mark.parametrize('state', ['absent', 'of another torch'])
def test_torchvisions_weights_need_no_torchvision(
    state: str, web: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if state == 'absent':
        monkeypatch.setitem(sys.modules, 'torchvision', None)
    else:
        (tmp_path / 'torchvision.py').write_text('raise RuntimeError("operator torchvision::nms does not exist")')
        monkeypatch.delitem(sys.modules, 'torchvision', raising=False)
        monkeypatch.syspath_prepend(str(tmp_path))
    torch.save({'conv1.weight': torch.ones(2)}, web / 'resnet50-0676ba61.pth')
    assert list(CheckpointLoader.load_checkpoint('torchvision://resnet50')) == ['conv1.weight']


@pytest.mark.parametrize('address', ['torchvision://resnet5000', 'open-mmlab://nothing', 'mmcls://nothing'])
def test_a_name_that_the_host_does_not_know_is_told(address: str) -> None:
    with pytest.raises(ValueError, match=f'{address}: .* knows no weights called .(resnet5000|nothing).*local file'):
        CheckpointLoader.load_checkpoint(address)


@pytest.mark.parametrize('gpu_ids', ['', 'gpu_ids = [0, 1]', 'gpu_ids = range(0, 2)', 'gpu_ids = len(open("x"))'])
def test_a_checkpoints_configuration_is_no_program(tmp_path: Path, gpu_ids: str) -> None:
    from mmengine import Config

    marker, path = tmp_path / 'ran', tmp_path / 'text.pth'
    text = f'open({str(marker)!r}, "w")\n{gpu_ids}\nmodel = 1\n'
    torch.save({'state_dict': {'a': torch.ones(1)}, 'meta': {'config': text, 'epoch': 2}}, path)
    meta = CheckpointLoader.load_checkpoint(str(path))['meta']
    config = Config.fromstring(meta.get('config', ''), file_format='.py')  # what resuming does with it
    assert not marker.exists()
    assert (meta['epoch'], meta['config_text']) == (2, text)
    assert config.get('gpu_ids') == ([0, 1] if gpu_ids in ('gpu_ids = [0, 1]', 'gpu_ids = range(0, 2)') else None)


class Model(BaseModel):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def forward(self, inputs: Any, mode: str = 'loss') -> Any:
        return {'loss': self.layer(torch.stack(list(inputs))).sum()}


@pytest.mark.parametrize('kind', ['local', 'https'])
def test_resuming_executes_no_configuration(tmp_path: Path, web: Path, kind: str) -> None:
    path, marker = web / 'iter_1.pth', tmp_path / 'ran'
    meta = {'epoch': 0, 'iter': 1, 'config': f'open({str(marker)!r}, "w")'}
    torch.save({'state_dict': Model().state_dict(), 'meta': meta, 'message_hub': MessageHub('a').state_dict()}, path)
    data = [torch.ones(1) for _ in range(3)]
    runner = Runner(
        Model(),
        work_dir=str(tmp_path / kind),
        train_dataloader=dict(dataset=data, sampler=dict(type='DefaultSampler', shuffle=False), batch_size=1),
        train_cfg=dict(by_epoch=False, max_iters=2),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        default_scope='mmengine',
    )
    source = str(path) if kind == 'local' else f'https://example.org/{path.name}'
    runner.resume(source, resume_optimizer=False, resume_param_scheduler=False)
    assert (runner.iter, marker.exists()) == (1, False)


def test_averages_that_the_host_passes_over_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = []
    monkeypatch.setattr('geomim.mmengine.compat.print_log', lambda sentence, **_: told.append(sentence))
    path = tmp_path / 'both.pth'
    torch.save({'state_dict': {'a': torch.zeros(1)}, 'state_dict_ema': {'module.a': torch.ones(1)}}, path)
    CheckpointLoader.load_checkpoint(str(path))
    assert len(told) == 1
    assert 'entry state_dict_ema, averaged weights' in told[0]
    assert told[0].endswith('the host itself takes state_dict')


def test_a_backbone_and_a_student_start_from_an_address(web: Path, make_config: Any, make_model: Any) -> None:
    from dataclasses import asdict

    from geomim.mmengine import GeoMIMPretrainer, GeoMIMSwin
    from geomim.mmengine.compat import open_source

    model = make_model(make_config())
    torch.save({'state_dict': model.state_dict()}, web / 'whole.pth')
    address = 'http://example.org/whole.pth'
    sizes = asdict(make_config().encoder)
    backbone = GeoMIMSwin(init_cfg=dict(type='Pretrained', checkpoint=address), **sizes)
    backbone.init_weights()
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, model.encoder.state_dict()[name])
    assert open_source(address).source == address
    pretrainer = GeoMIMPretrainer.__new__(GeoMIMPretrainer)
    torch.nn.Module.__init__(pretrainer)
    pretrainer.student, pretrainer.init_from = make_model(make_config()), address
    pretrainer.init_weights()
    assert torch.equal(pretrainer.student.head.weight, model.head.weight)


def test_a_schedule_resumes_with_its_own_function_not_a_stand_in(tmp_path: Path) -> None:
    from mmengine.optim import OneCycleLR

    def schedule() -> Any:
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
        return optimizer, OneCycleLR(optimizer, eta_max=0.1, total_steps=10)

    (optimizer, wanted), (own, resumed) = schedule(), schedule()
    for _ in range(3):
        wanted.step()
    torch.save({'param_schedulers': [wanted.state_dict()], 'state_dict': {}}, tmp_path / 'run.pth')
    resumed.load_state_dict(CheckpointLoader.load_checkpoint(str(tmp_path / 'run.pth'))['param_schedulers'][0])
    wanted.step()
    resumed.step()
    assert own.param_groups[0]['lr'] == optimizer.param_groups[0]['lr'] != 0.1
