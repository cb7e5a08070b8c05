"""What parts say of themselves: kind and owner, by which they are trained or left alone."""

from pathlib import Path

import pytest
import torch
from names import kind_of, owner_of
from tiny import tiny_vit
from tinyrun import tiny_tasks_plain
from torch import nn

from pipeline.balancing import BALANCING
from pipeline.config.load import from_plain
from pipeline.errors import ConfigError
from pipeline.model import Heads, MultiTaskModel, build_model
from pipeline.modes import set_modes
from pipeline.objectives.supervised import Supervised
from pipeline.parts import BALANCE, FIXED, HEAD, TRAINED, Role, roles_of, set_trainable
from tasks.classification import ClassificationTask


@pytest.mark.parametrize("embedding", ["shared", "per_task", "adapter"])
@pytest.mark.parametrize("balancing", BALANCING.names())
def test_the_names_of_a_state_dict_agree_with_what_the_parts_say(embedding, balancing):
    sections = dict(merging=dict(embedding=embedding), balancing=dict(type=balancing))
    model = build_model(from_plain(tiny_tasks_plain(Path("-"), Path("-"), **sections)))
    roles = roles_of(model)
    assert roles.keys() >= model.state_dict().keys()
    assert roles == {name: Role(kind_of(name), owner_of(name)) for name in roles}


def test_a_name_says_nothing():
    """Tasks named as other parts are, with parts that are named as tasks' are."""
    layer = nn.Sequential()
    layer.metric, layer.tasks = nn.Linear(2, 2), nn.ModuleDict({"b": nn.Linear(2, 2)})
    roles = roles_of(Heads({"metric": layer, "adapters": nn.Linear(2, 2)}))
    assert {role.kind for role in roles.values()} == {HEAD}
    assert {name.split(".")[0]: role.owner for name, role in roles.items()} == {
        "metric": "metric",
        "adapters": "adapters",
    }


class Taught(Supervised):
    """An objective with a module of its own."""

    def __init__(self, **said):
        super().__init__()
        self.teacher = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
        for name, value in said.items():
            setattr(self.teacher, name, value)


def taught_model(**said):
    backbone = tiny_vit("dtem")
    return MultiTaskModel(backbone, {"a": ClassificationTask(backbone, num_classes=3)}, Taught(**said))


@pytest.mark.parametrize("mode", TRAINED)
def test_a_part_that_says_no_kind_is_refused(mode):
    """It would be trained with the backbone, or not, by accident."""
    message = r"objective\.teacher\.0\.weight is of no kind.*give Linear.* part_kind: one of metric, base"
    with pytest.raises(ConfigError, match=message):
        set_trainable(taught_model(), mode)


def test_a_kind_that_there_is_not_is_refused():
    message = r"objective\.teacher \(Sequential\) has part_kind 'teacher'; give one of metric"
    with pytest.raises(ConfigError, match=message):
        set_trainable(taught_model(part_kind="teacher"), "joint")


@pytest.mark.parametrize("mode", TRAINED)
@pytest.mark.parametrize("kind", [FIXED, HEAD])
def test_a_part_of_an_objective_is_trained_or_fixed_as_it_says(mode, kind):
    model = taught_model(part_kind=kind)
    set_trainable(model, mode)
    set_modes(model, TRAINED[mode] | {BALANCE})
    learns = kind in TRAINED[mode]
    teacher = model.objective.teacher
    assert [parameter.requires_grad for parameter in teacher.parameters()] == [learns, learns]
    assert [part.training for part in teacher.modules()] == [learns] * 3


@pytest.mark.parametrize("mode", TRAINED)
@pytest.mark.parametrize("holder", ["itself", "what holds it"])
def test_what_is_fixed_is_fixed_with_all_that_it_holds(mode, holder):
    """A teacher may be a backbone, whose parts are of kinds that the student trains."""
    model, teacher = taught_model(part_kind=FIXED), tiny_vit("dtem")
    if holder == "itself":
        model.objective.teacher = teacher
        teacher.part_kind = FIXED
    else:
        model.objective.teacher.append(teacher)
    set_trainable(model, mode)
    set_modes(model, TRAINED[mode] | {BALANCE})
    inside = {name: role for name, role in roles_of(model).items() if name.startswith("objective.teacher.")}
    assert any(".metric." in name for name in inside) and set(inside.values()) == {Role(FIXED)}
    assert not any(parameter.requires_grad for parameter in model.objective.teacher.parameters())
    assert not any(part.training for part in model.objective.teacher.modules())
    assert any(parameter.requires_grad for parameter in model.parameters())


def test_a_kind_that_there_is_not_is_refused_inside_of_what_is_fixed():
    model = taught_model(part_kind=FIXED)
    model.objective.teacher[0].part_kind = "student"
    with pytest.raises(ConfigError, match="part_kind 'student'; give one of metric"):
        set_trainable(model, "joint")


@pytest.mark.parametrize("mode", ["modular", "end_to_end", "joint"])
def test_nothing_to_learn_is_a_mistake(mode):
    backbone = tiny_vit("tome")
    with pytest.raises(ConfigError, match="no metric embedding to learn"):
        set_trainable(backbone, mode)


def test_only_floating_point_parameters_are_trained():
    backbone = tiny_vit("dtem")
    backbone.counts = nn.Parameter(torch.zeros(2, dtype=torch.int64), requires_grad=False)
    set_trainable(backbone, "joint")
    assert not backbone.counts.requires_grad
