import re
from html.parser import HTMLParser

import numpy as np
import pytest
import timm
from PIL import Image
from safetensors.torch import save_file

from dtem import load_run
from launch.pictures.flow import flow
from launch.pictures.page import Row
from launch.predict.results import Classes
from pipeline.data.shards.cache import default_cache
from pipeline.data.shards.find import load_manifest
from pipeline.data.shards.reader import SampleReader
from pipeline.drawing.groups import BORDER, default_blocks, owner_of_pixels, paint_groups
from pipeline.drawing.panels import Panel


def test_one_group_is_one_colour_and_no_border():
    picture = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    painted = paint_groups(picture, np.zeros((8, 8), dtype=np.int64))
    assert (painted == picture.reshape(-1, 3).mean(0).round().astype(np.uint8)).all()


def test_a_group_in_two_places_has_one_colour_and_borders_stand_between_groups():
    picture = np.zeros((4, 8, 3), dtype=np.uint8)
    picture[:, 4:] = 100
    owner = owner_of_pixels(np.array([[5, 5, 9, 5]]), (2, 4), (2, 1), (4, 8))
    painted = paint_groups(picture, owner)
    inside = [painted[0, 0], painted[0, 2], painted[0, 7]]
    assert all((colour == round(100 / 3)).all() for colour in inside) and (painted[0, 4] == 100).all()
    assert (painted[:, [3, 5]] == BORDER).all()


@pytest.mark.parametrize("shown", [(10, 14), (30, 42), (5, 7)])
def test_a_picture_of_any_size_shows_the_patches_where_they_are(shown):
    """An image of 10 x 14 pixels in patches of 4, of which the last ones are cut."""
    owner = owner_of_pixels(np.arange(12).reshape(3, 4), (10, 14), (4, 4), shown)
    assert owner[0, 0] == 0 and owner[-1, -1] == 11 and owner.shape == shown
    assert owner[shown[0] // 2, shown[1] // 2] == 5


@pytest.mark.parametrize("depth, blocks", [(12, [4, 8, 12]), (3, [1, 2, 3]), (1, [1])])
def test_default_blocks_end_with_the_last(depth, blocks):
    assert default_blocks(depth) == blocks


class _Page(HTMLParser):
    """What a reader's browser and aids find in a page."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def all(self, tag):
        return [attrs for name, attrs in self.found if name == tag]


def test_the_page_states_the_tokens_and_needs_no_other_file(trained, dtem, tmp_path):
    options = ["--num", 2, "--reduction", "1,3", "--blocks", "1,3"]
    dtem("visualise", trained, *options, "--out", tmp_path, "--animate")
    text = (tmp_path / "groups_digits_dtem.html").read_text()
    for block, r, left in [(1, 1, 16), (3, 1, 14), (1, 3, 14), (3, 3, 8)]:
        assert f"r {r}, block {block}: {left} tokens" in text
    page = _Page(text)
    assert len(page.all("img")) == 2 * 5 and not page.all("script")
    assert set(re.findall(r'src="(.{15})', text)) == {"data:image/png;"}
    assert (tmp_path / "groups_digits_dtem.png").read_bytes().startswith(b"\x89PNG")
    with Image.open(tmp_path / "groups_digits_dtem.gif") as film:
        assert film.n_frames == 3 and film.info["loop"] == 0


def test_the_page_is_for_phones_and_screen_readers_and_leads_to_the_run(trained, dtem, tmp_path):
    dtem("visualise", trained, "--num", 4, "--out", tmp_path / "page")
    text = (tmp_path / "page/groups_digits_dtem.html").read_text()
    page = _Page(text)
    assert page.all("html") == [{"lang": "en"}]
    assert any("width=device-width" in attrs.get("content", "") for attrs in page.all("meta"))
    pictures = [attrs["alt"] for attrs in page.all("img")]
    assert all(pictures) and len(set(pictures)) == len(pictures)
    links = [attrs["href"] for attrs in page.all("a")]
    assert [(tmp_path / "page" / link).resolve() for link in links] == [
        trained / "config.json",
        trained / "metrics.jsonl",
    ]
    inputs = {attrs["id"] for attrs in page.all("input")}
    assert inputs == {f"show-{name}" for name in ("all", "wrong", "changed", "unmerged", "merged")}
    assert all(f"#{name}:" in text for name in inputs - {"show-all"})
    wrong = [attrs for attrs in page.all("article") if "data-wrong" in attrs]
    assert f"wrong ({len(wrong)})" in text
    assert len(wrong) == len({part for part in re.findall(r"<article.*?</article>", text) if "✗" in part})


def test_samples_are_chosen_by_their_keys(trained, dtem, tmp_path):
    dtem("visualise", trained, "--num", 4, "--out", tmp_path)
    text = (tmp_path / "groups_digits_dtem.html").read_text()
    keys = re.findall(r"<h3>(.*?)</h3>", text)
    dtem("visualise", trained, "--keys", f"{keys[3]},{keys[1]}", "--out", tmp_path)
    chosen = (tmp_path / "groups_digits_dtem.html").read_text()
    assert re.findall(r"<h3>(.*?)</h3>", chosen) == [keys[1], keys[3]]
    for key in keys[1], keys[3]:
        assert re.findall(f"<h3>{key}.*?</article>", text) == re.findall(f"<h3>{key}.*?</article>", chosen)
    assert "no sample has the key 'x'; there are" in dtem("visualise", trained, "--keys", "x", code=2)


@pytest.fixture(scope="module")
def photos(digits, tmp_path_factory):
    """Two images of the val split as files, one of them wider, and one that is no image."""
    folder = tmp_path_factory.mktemp("images") / "photos"
    folder.mkdir()
    reader = SampleReader(load_manifest(str(digits), "val"), 1, default_cache(), 1.0)
    (folder / "0.jpg").write_bytes(reader.read(0, 0)["jpg"])
    with Image.open(folder / "0.jpg") as image:
        image.resize((48, 32)).save(folder / "1.png")
    (folder / "2.jpg").write_bytes(b"no image")
    return folder


def test_own_images_are_drawn_as_the_samples_are(trained, photos, dtem, tmp_path):
    """A file with the bytes of a sample has the sample's answers and groups; of one that cannot be read it is
    said."""
    asked = ["--reduction", "1,3", "--blocks", "1,3", "--animate"]
    dtem("visualise", trained, "--num", 1, *asked, "--out", tmp_path / "samples")
    said = dtem("visualise", trained, "--images", photos, *asked, "--out", tmp_path / "own", code=1)
    assert "1 image could not be read" in said and "2.jpg" in said
    first = (tmp_path / "samples/groups_digits_dtem.html").read_text()
    text = (tmp_path / "own/images_digits_dtem.html").read_text()
    pictures = [re.findall(r'src="(.*?)"', page.partition("</article>")[0]) for page in (first, text)]
    assert pictures[0] == pictures[1] and len(pictures[0]) == 5
    answers = [
        re.findall(r"<li[^>]*><b>(.*?)</b>", page.partition("</article>")[0]) for page in (first, text)
    ]
    plain = [[re.sub("<.*?>|✓|✗|right: |wrong: ", "", own).strip() for own in found] for found in answers]
    assert plain[0] == plain[1] and len(plain[0]) == 3
    assert text.count("<article") == 2 and "wrong (0)" in text and "<p>true" not in text
    with Image.open(tmp_path / "own/images_digits_dtem.gif") as film:
        assert film.n_frames == 3


def test_a_published_model_draws_own_images(photos, dtem, tmp_path):
    name, weights = "timm:test_vit.r160_in1k", tmp_path / "model.safetensors"
    save_file(timm.create_model("test_vit").state_dict(), weights)
    model = [name, "--weights", weights, "--images", photos / "0.jpg", photos / "1.png"]
    dtem("visualise", *model, "--policy", "tome", "--reduction", "4,9", "--out", tmp_path)
    text = (tmp_path / "images_classification_tome.html").read_text()
    depth = len(timm.create_model("test_vit").blocks)
    for r in (4, 9):
        assert f"r {r}, block {depth}: {1 + 100 - depth * r} tokens" in text
    assert text.count("<article") == 2 and text.count("unmerged</small>") == 2
    found = load_run(name, weights=str(weights), policy="none", device="cpu").predict(photos / "0.jpg")[0]
    assert isinstance(found, Classes) and found.names[0].split(",")[0] in text
    assert "does not merge by itself" in dtem("visualise", *model, code=2)
    assert "give --images" in dtem("visualise", name, code=2)


def test_images_that_are_not_there_are_named(trained, dtem, tmp_path):
    assert "there is no image or folder" in dtem("visualise", trained, "--images", tmp_path / "x", code=2)
    (tmp_path / "a.jpg").write_bytes(b"x")
    assert "none of 1 images can be read" in dtem("visualise", trained, "--images", tmp_path, code=2)
    assert "goes with a published model" in dtem("visualise", trained, "--img-size", 32, code=2)


def test_a_block_or_task_that_is_not_there_is_refused(trained, dtem):
    assert "counted from 1 to 3" in dtem("visualise", trained, "--blocks", "0", code=2)
    assert "counted from 1 to 3" in dtem("visualise", trained, "--blocks", "4", code=2)
    assert "no task 'cats'; it has digits" in dtem("visualise", trained, "--task", "cats", code=2)


@pytest.mark.parametrize("width", [1.5, 3.0, 5.0, 20.0])
def test_the_panels_of_a_row_stay_within_the_page_and_apart(width):
    picture = np.zeros((10, 10, 3), dtype=np.uint8)
    panels = [Panel(picture, "a", owner) for owner in ("x", "y", "y", "y", "z", "z")]
    placed = flow(Row("key", panels), width).placed
    assert len(placed) == len(panels)
    boxes = [(own.left, own.top, own.left + own.width, own.top + own.height) for own in placed]
    assert all(0 <= left < right <= width + 1e-9 for left, _, right, _ in boxes)
    for i, one in enumerate(boxes):
        for other in boxes[:i]:
            assert one[0] >= other[2] or other[0] >= one[2] or one[1] >= other[3] or other[1] >= one[3]
