"""Image preprocessing equals transformers' Qwen2VLImageProcessorPil, bit for bit."""

import json

import numpy as np
import pytest
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from calib_data.images import open_image
from console.errors import InputError
from runtime.inputs.images import ImageSettings, preprocess, smart_resize

NEW_STYLE = {
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "size": {"shortest_edge": 3136, "longest_edge": 3211264},
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "rescale_factor": 0.00392156862745098,
    "resample": 3,
    "do_resize": True,
}
OLD_STYLE = {
    **{key: NEW_STYLE[key] for key in ("patch_size", "temporal_patch_size", "merge_size")},
    "min_pixels": 50176,
    "max_pixels": 401408,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
OTHERWISE = {**NEW_STYLE, "patch_size": 16, "merge_size": 1, "temporal_patch_size": 3, "resample": 2}
OTHERWISE["rescale_factor"] = 1 / 127.5


def folder_with(config, folder):
    (folder / "preprocessor_config.json").write_text(json.dumps(config))
    return folder


def picture(mode, height, width):
    """Noise over a gradient: every filter tap and every level is used."""
    random = np.random.default_rng(height * 7919 + width)
    ramp = np.add.outer(np.linspace(0, 128, height), np.linspace(0, 64, width))[..., None]
    bands = {"1": 1, "L": 1, "P": 1, "LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4}[mode]
    pixels = (ramp + random.integers(0, 64, (height, width, bands))).astype(np.uint8)
    if mode in ("1", "P"):
        return Image.fromarray(pixels[..., 0]).convert(mode)
    return Image.frombytes(mode, (width, height), pixels.tobytes())


def assert_equal_to_transformers(image, config, tmp_path):
    folder = folder_with(config, tmp_path)
    patches, grid = preprocess(image, ImageSettings.from_folder(folder))
    theirs = Qwen2VLImageProcessorPil.from_pretrained(folder)(image, return_tensors="np")
    assert [list(grid)] == theirs["image_grid_thw"].tolist()
    assert patches.dtype == theirs["pixel_values"].dtype == np.float32
    assert np.array_equal(patches, theirs["pixel_values"])


SIZES = [
    (1, 1),
    (1, 150),
    (150, 1),
    (1, 200),
    (27, 29),
    (28, 28),
    (56, 56),
    (57, 83),
    (13, 999),
    (30, 4000),
    (4000, 30),
]


@pytest.mark.parametrize("config", [NEW_STYLE, OLD_STYLE, OTHERWISE], ids=["new", "old", "other"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_sizes(size, config, tmp_path):
    assert_equal_to_transformers(picture("RGB", *size), config, tmp_path)


def test_random_sizes(tmp_path):
    random = np.random.default_rng(3)
    for height, width in random.integers(1, 400, (20, 2)):
        if max(height, width) <= 200 * min(height, width):
            assert_equal_to_transformers(picture("RGB", height, width), OLD_STYLE, tmp_path)


@pytest.mark.parametrize(
    "config", [OLD_STYLE, NEW_STYLE | {"size": {"shortest_edge": 3136, "longest_edge": 401408}}], ids=["old", "new"]
)
def test_an_image_over_the_largest_size(config, tmp_path):
    assert_equal_to_transformers(picture("RGB", 910, 1485), config, tmp_path)


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK"])
def test_modes(mode, tmp_path):
    assert_equal_to_transformers(picture(mode, 61, 95), NEW_STYLE, tmp_path)


def test_16_bits_are_scaled(tmp_path):
    """transformers clips them, which makes a scan white."""
    settings = ImageSettings.from_folder(folder_with(NEW_STYLE, tmp_path))
    grey = picture("L", 61, 95)
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    assert np.array_equal(preprocess(deep, settings)[0], preprocess(grey, settings)[0])


def test_32_bits_are_refused_by_name(tmp_path):
    settings = ImageSettings.from_folder(folder_with(NEW_STYLE, tmp_path))
    with pytest.raises(InputError, match=r"^image 2: has signed, float or 32-bit pixels"):
        preprocess(Image.new("F", (64, 64)), settings, "image 2")


def test_a_file(tmp_path):
    picture("RGBA", 61, 95).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert_equal_to_transformers(image, NEW_STYLE, tmp_path)
        settings = ImageSettings.from_folder(tmp_path)
        assert np.array_equal(
            preprocess(open_image(tmp_path / "a.png"), settings)[0],
            preprocess(image, settings)[0],
        )


@pytest.mark.parametrize("size", [(1, 201), (4001, 20)])
def test_too_long_an_image_is_refused_by_name(size, tmp_path):
    settings = ImageSettings.from_folder(folder_with(NEW_STYLE, tmp_path))
    with pytest.raises(InputError, match=r"^receipt\.png: .*200 times"):
        preprocess(picture("RGB", *size), settings, name="receipt.png")


def test_every_allowed_shape_stays_within_bounds(tmp_path):
    """Whole blocks, at least the smallest area, at most the largest, unless a side is a single block."""
    settings = ImageSettings.from_folder(folder_with(OLD_STYLE, tmp_path))
    random = np.random.default_rng(5)
    for _ in range(2000):
        short = int(random.integers(1, 3000))
        long = min(int(short * random.uniform(1, 200)), 20000)
        height, width = smart_resize(short, long, settings)
        assert height % 28 == width % 28 == 0
        assert height * width >= settings.min_pixels or min(height, width) == 28
        assert height * width <= settings.max_pixels or min(height, width) == 28


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch_size": None}, "patch_size: Input should be a valid integer, found None"),
        ({"patch_size": 1e400}, "patch_size: Input should be a valid integer, found inf"),
        ({"patch_size": True}, "patch_size: Input should be a valid integer, found True"),
        ({"merge_size": 0}, "merge_size: Input should be greater than or equal to 1, found 0"),
        ({"size": {"height": 224, "width": 224}}, r"size\.shortest_edge is missing"),
        ({"size": {"shortest_edge": 3136}}, r"size\.longest_edge is missing"),
        ({"size": {"shortest_edge": 3136, "longest_edge": 100}}, "at most 100 pixels are too few for an image"),
        ({"image_mean": 0.5}, "image_mean: Input should be a valid array"),
        ({"image_std": [1, 1]}, r"image_std\.2 is missing"),
        ({"image_std": [1, 1, 0]}, r"image_std\.2: Input should be greater than 0"),
        ({"image_mean": [0, 0, 10**400]}, r"image_mean\.2: Input should be a finite number"),
        ({"rescale_factor": "1/255"}, "rescale_factor: Input should be a valid number"),
        ({"resample": 77}, "resample: Input should be 0, .*, found 77"),
        ({"do_normalize": False}, "do_normalize is false"),
    ],
)
def test_wrong_settings_are_named(change, message, tmp_path):
    with pytest.raises(InputError, match=message) as caught:
        ImageSettings.from_folder(folder_with({**NEW_STYLE, **change}, tmp_path))
    assert str(caught.value).startswith(str(tmp_path / "preprocessor_config.json"))


@pytest.mark.parametrize("name", ["patch_size", "temporal_patch_size", "merge_size", "image_mean", "image_std"])
def test_missing_settings_are_named(name, tmp_path):
    config = {key: value for key, value in NEW_STYLE.items() if key != name}
    with pytest.raises(InputError, match=f"{name} is missing"):
        ImageSettings.from_folder(folder_with(config, tmp_path))


def test_a_missing_or_broken_settings_file(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        ImageSettings.from_folder(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        ImageSettings.from_folder(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("[]")
    with pytest.raises(InputError, match="not a JSON object"):
        ImageSettings.from_folder(tmp_path)


@pytest.mark.parametrize("other", [None, {**NEW_STYLE, "size": {"shortest_edge": 3136, "longest_edge": 12544}}])
def test_settings_saved_with_all_of_a_processor(other, tmp_path):
    """As transformers 5 saves them: processor_config.json goes before a preprocessor_config.json of other settings."""
    together = {"processor_class": "Exaone4_5_Processor", "image_processor": NEW_STYLE}
    (tmp_path / "processor_config.json").write_text(json.dumps(together))
    if other:
        folder_with(other, tmp_path)
    image = picture("RGB", 200, 300)
    patches, _ = preprocess(image, ImageSettings.from_folder(tmp_path))
    theirs = Qwen2VLImageProcessorPil.from_pretrained(tmp_path)(image, return_tensors="np")
    assert np.array_equal(patches, theirs["pixel_values"])
