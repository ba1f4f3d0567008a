"""Samples on disk: what is read is what was written, bit for bit."""

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from rollouts.sample_files import StoredSample, rank_file, read_samples, write_samples
from rollouts.types import TrainingSample


def sample(rng: np.random.Generator, index: int) -> TrainingSample:
    size = int(rng.integers(1, 30))

    def stream() -> np.ndarray:
        values = rng.normal(size=size).astype(np.float32)
        values[rng.random(size) < 0.1] = np.nan
        return values

    return TrainingSample(
        group_id=f"späte/train/{index}#e0a0",
        index=index,
        token_ids=rng.integers(0, 150_000, size).astype(np.int32),
        loss_mask=rng.random(size) < 0.5,
        rollout_logprobs=stream(),
        advantages=stream(),
        loss_weight=stream(),
        kl_coef=stream(),
        clip_low=stream(),
        clip_high=stream(),
        temperature=stream(),
    )


@pytest.mark.parametrize("seed", range(8))
def test_what_is_read_is_what_was_written(tmp_path: Path, seed: int):
    rng = np.random.default_rng(seed)
    samples = [sample(rng, i) for i in range(seed)]
    stored = [
        StoredSample(
            sample=s,
            ref_logprobs=rng.normal(size=len(s.token_ids)).astype(np.float32)
            if seed % 2 and rng.random() < 0.7
            else None,
        )
        for s in samples
    ]
    path = tmp_path / rank_file(0)
    write_samples(path, stored)
    assert [p.name for p in tmp_path.iterdir()] == ["rank_0.npz"]
    found = read_samples(path)
    assert len(found) == len(stored)
    for one, other in zip(stored, found, strict=True):
        for field in fields(TrainingSample):
            mine, theirs = (getattr(x.sample, field.name) for x in (one, other))
            assert type(mine) is type(theirs)
            if isinstance(mine, np.ndarray):
                assert mine.dtype == theirs.dtype and mine.tobytes() == theirs.tobytes()
            else:
                assert mine == theirs
        if one.ref_logprobs is None:
            assert other.ref_logprobs is None
        else:
            assert other.ref_logprobs is not None
            assert one.ref_logprobs.tobytes() == other.ref_logprobs.tobytes()
