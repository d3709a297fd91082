"""What the hooks of every host do; a host's own hook says when.

The model has a core ``GeoMIM`` as ``.student`` and a ``.teacher`` that carries its ``record``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Iterable, Mapping, Optional, Sequence, Union

from ..atomic import PathLike, files_beside
from ..checkpoints.loading import check_encoder_layouts, write_encoders
from ..method.pretrainer import GeoMIM
from ..teachers.guard import TeacherGuard


class GuardsTeacher:
    """Makes sure that the teacher is frozen, stays as it was loaded, and gives the raster of the student.

    Args:
        interval: iterations between comparisons of the teacher's weights, None for the end of every epoch only.

    Raises:
        RuntimeError: a teacher that trains, or whose weights have changed; names the module or tensor.
        ValueError: a teacher's record that does not fit the student's grid.
    """

    def __init__(self, interval: Optional[int] = None) -> None:
        if interval is not None and interval < 1:
            raise ValueError(f'{type(self).__name__}: interval must be at least 1 iteration, got {interval}')
        self.interval = interval
        self._guard: Optional[TeacherGuard] = None

    def start_guarding(self, model: Any, groups: Iterable[Mapping[str, Any]]) -> None:
        """Check mode, gradients, the optimizers' parameter groups and the record; remember the weights."""
        self._guard = TeacherGuard(model.teacher)
        self._guard.check_mode()
        self._guard.check_frozen(groups)
        student = model.student.config
        model.teacher.record.check_student(student.view_transform.output_grid, student.target.channels)

    def check_mode(self, first_of_epoch: bool, iteration: int) -> None:
        """Check the mode where it may have changed: a host calls ``model.train()`` before an epoch's first iteration."""
        due = first_of_epoch or (self.interval is not None and iteration % self.interval == 0)
        if due and self._guard is not None:
            self._guard.check_mode()

    def check_unchanged(self) -> None:
        """Compare the weights with those at the start."""
        if self._guard is not None:
            self._guard.check_unchanged()


class ExportsEncoder:
    """Writes the student's encoder in the layouts that finetuning loads, into the run's working directory.

    Args:
        filename: a layout's name goes before its suffix: ``encoder.pth`` becomes ``encoder_bevdet.pth``.
        layouts: names that ``geomim.checkpoints.loading.export_encoder`` knows.
        every_epoch: also after every epoch, over the same files.

    Raises:
        ValueError: no layout, or one that is not known.
    """

    def __init__(
        self, filename: str = 'encoder.pth', layouts: Sequence[str] = ('bevdet', 'mmdet'), every_epoch: bool = False
    ) -> None:
        self.filename, self.every_epoch = filename, every_epoch
        self.layouts = check_encoder_layouts(layouts, type(self).__name__)

    def export(self, student: GeoMIM, work_dir: Union[str, Path], log: Callable[[str], Any]) -> None:
        """Write one file per layout."""
        for layout, path in write_encoders(student, Path(work_dir) / self.filename, self.layouts).items():
            log(f'encoder for finetuning ({layout} layout): {path}')


class SavesWhole:
    """A runner whose checkpoints appear in their folder as a whole or not at all; all else is the runner's own."""

    def __init__(self, runner: Any) -> None:
        self._runner = runner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def save_checkpoint(self, out_dir: PathLike, *args: Any, **options: Any) -> None:
        """The runner's own, by way of a folder inside ``out_dir``."""
        with files_beside(out_dir) as scratch:
            self._runner.save_checkpoint(str(scratch), *args, **options)
