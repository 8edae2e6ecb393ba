import torch
from torchvision.transforms import functional as tv

from fedlightning.core.seeding import Key, forked_generators
from fedlightning.datamodules.vision.transforms import Scaling, crop_and_flip, random_crop_and_flip


def images(n=6, size=32, channels=3):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (n, channels, size, size), generator=generator, dtype=torch.uint8)


def test_it_is_torchvisions_pad_crop_and_flip():
    batch = images()
    top, left = torch.tensor([0, 8, 4, 1, 7, 4]), torch.tensor([8, 0, 4, 3, 2, 4])
    flipped = torch.tensor([True, False, True, False, True, False])
    expected = []
    for image, y, x, flip in zip(batch, top.tolist(), left.tolist(), flipped.tolist(), strict=True):
        cropped = tv.crop(tv.pad(image, [4, 4, 4, 4]), y, x, 32, 32)
        expected.append(tv.hflip(cropped) if flip else cropped)
    assert torch.equal(crop_and_flip(batch, top, left, flipped, 4), torch.stack(expected))


def test_images_need_not_be_square():
    batch = images()[:2, :, :, :20]
    middle, no = torch.tensor([4, 4]), torch.tensor([False, False])
    assert torch.equal(crop_and_flip(batch, middle, middle, no, 4), batch)


def test_the_global_generator_decides():
    batch = images()
    drawn = []
    for client in (0, 0, 1):
        with forked_generators(Key(0, "fit", client=client)):
            drawn.append(random_crop_and_flip(batch))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_every_offset_occurs_about_equally_often():
    """An image with one white row or column shows where it was cut."""
    size, n = 9, 20_000
    row, column = torch.zeros(2, n, 1, size, size, dtype=torch.uint8)
    row[:, :, 4] = 1
    column[:, :, :, 2] = 1
    with forked_generators(Key(0, "fit")):
        rows = random_crop_and_flip(row).amax(dim=3).float()[:, 0]
        columns = random_crop_and_flip(column, flip=False).amax(dim=2).float()[:, 0]
    assert (rows.mean(dim=0) - 1 / 9).abs().max() < 0.01
    # Column 2 lands on 0..6, and outside the image for two of the nine offsets.
    expected = torch.tensor([1.0] * 7 + [0.0] * 2) / 9
    assert (columns.mean(dim=0) - expected).abs().max() < 0.01


def test_half_of_the_images_are_mirrored():
    batch = torch.zeros(10_000, 1, 9, 9, dtype=torch.uint8)
    batch[:, :, :, :4] = 1
    with forked_generators(Key(0, "fit")):
        halves = random_crop_and_flip(batch, padding=0).float().mean(dim=(0, 1, 2))
    assert (halves[:4] - 0.5).abs().max() < 0.02
    assert (halves[5:] - 0.5).abs().max() < 0.02


def test_scaling_is_torchvisions():
    batch = images(3)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    expected = tv.normalize(batch.float() / 255, mean, std)
    assert torch.equal(Scaling(mean, std)(batch), expected)


def test_scaling_alone_maps_255_to_one():
    batch = torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 1, 2)
    assert Scaling(None, None)(batch).flatten().tolist() == [0.0, 1.0]


def test_scaling_leaves_the_stored_images_alone():
    batch = images(2)
    before = batch.clone()
    Scaling((0.5,) * 3, (0.5,) * 3)(batch)
    assert torch.equal(batch, before)


def test_everything_happens_on_the_images_device():
    batch = images().to("meta")
    scaled = Scaling((0.5,) * 3, (0.5,) * 3)(random_crop_and_flip(batch))
    assert scaled.device.type == "meta"
    assert scaled.shape == batch.shape
