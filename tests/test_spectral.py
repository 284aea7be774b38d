"""Spectra: equal to librosa's, finite at silence, and the measures of sound say what their names say."""

import math

import numpy as np
import pytest
import torch

import diffeo
from diffeo.modalities.audio import measures as sound
from diffeo.spectral import frames_of, log_mel, magnitudes, mel_filters

RATE = 8000
TIME = torch.arange(RATE, dtype=torch.float64) / RATE
NOISE = 0.1 * torch.randn(RATE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
TONE = 0.3 * torch.sin(2 * math.pi * 1000 * TIME)
# librosa 0.11.0, librosa.filters.mel(sr=8000, n_fft=256, n_mels=40): their sum and some of them
LIBROSA_SUM = 1.2792624304493074
LIBROSA = {
    (0, 1): 0.009558937512338161,
    (0, 2): 0.01586131937801838,
    (5, 11): 0.017278864979743958,
    (20, 38): 0.005470074247568846,
    (20, 39): 0.011584537103772163,
    (30, 71): 0.007603558246046305,
    (39, 127): 0.0006132493144832551,
}
VOICE = sum(0.1 / k * torch.sin(2 * math.pi * 120 * k * TIME) for k in range(1, 12))


def test_mel_filters_are_librosas():
    filters = mel_filters(RATE, 256, 40)
    assert filters.sum().item() == pytest.approx(LIBROSA_SUM, rel=1e-6)
    for (row, column), value in LIBROSA.items():
        assert filters[row, column].item() == pytest.approx(value, abs=1e-8)


@pytest.mark.parametrize(
    ("rate", "size", "mels", "hop"), [(8000, 256, 40, 64), (8000, 320, 40, 80), (22050, 1024, 80, 256)]
)
def test_features_are_librosas(rate, size, mels, hop):
    librosa = pytest.importorskip("librosa")
    x = NOISE.float()[:3001]
    np.testing.assert_allclose(
        mel_filters(rate, size, mels).numpy(), librosa.filters.mel(sr=rate, n_fft=size, n_mels=mels), atol=1e-7
    )
    reach = (frames_of(len(x), hop) - 1) * hop + size
    left = (size - hop) // 2
    padded = np.pad(x.numpy(), (left, reach - left - len(x)))
    mel = librosa.feature.melspectrogram(
        y=padded, sr=rate, n_fft=size, hop_length=hop, center=False, power=1, n_mels=mels
    )
    np.testing.assert_allclose(log_mel(x, rate, mels, size, hop).numpy(), np.log(np.maximum(mel, 1e-5)), atol=1e-4)


@pytest.mark.parametrize("samples", [1, 63, 64, 65, 1000])
def test_a_frame_for_every_hop(samples):
    x = NOISE[: 2 * samples].reshape(2, samples)
    assert magnitudes(x, 256, 64).shape == (2, 129, frames_of(samples, 64))
    assert log_mel(x.float(), RATE, 20, 256, 64).shape == (2, 20, -(-samples // 64))


def test_a_frame_is_centred_on_its_samples():
    click = torch.zeros(640)
    click[5 * 64 + 32] = 1.0  # in the middle of frame 5
    power = magnitudes(click, 256, 64).square().sum(0)
    assert power.argmax() == 5
    torch.testing.assert_close(power[4], power[6], rtol=0.05, atol=0.0)


def test_a_tone_has_half_its_amplitude():
    spectrum = magnitudes(TONE, 256, 64)
    assert spectrum[32, 20].item() == pytest.approx(0.15, rel=1e-3)


def test_a_window_keeps_a_tone_from_leaking():
    """Without one a tone between two frequencies is heard ten bins away at a thirtieth of its height."""
    between = torch.sin(2 * math.pi * (1000 + RATE / 512) * TIME)
    spectrum = magnitudes(between, 256, 64)[:, 20]
    assert spectrum[32:34].amax() / spectrum[[22, 43]].amax() > 1000


def test_gradients_are_finite_at_silence():
    x = torch.zeros(2, 400, dtype=torch.float64, requires_grad=True)
    loss = diffeo.objectives.PowerLoss((32, 64))
    for y in (torch.zeros_like(x), NOISE[:800].reshape(2, 400)):
        (loss(x, y).sum() + log_mel(x.float(), RATE, 10, 64, 16).sum()).backward()
        assert torch.isfinite(x.grad).all()
    torch.autograd.gradcheck(
        lambda x: loss(x, NOISE[:200].reshape(1, 200)), NOISE[300:500].reshape(1, 200).requires_grad_()
    )


def test_the_power_loss_hears_a_sound_that_is_too_quiet():
    loss = diffeo.objectives.PowerLoss()
    x = torch.stack([VOICE, NOISE])
    torch.testing.assert_close(loss(x, x), torch.zeros(2, dtype=torch.float64))
    delayed, too_quiet = VOICE.roll(1), NOISE * sound.rms(VOICE) / sound.rms(NOISE)
    assert loss(delayed[None], VOICE[None]) < 0.05 * loss(too_quiet[None], VOICE[None])
    assert loss(x, x.flip(0)).shape == (2,)
    # Noise is most like other noise at its own loudness, not where it is quieter.
    one, other = NOISE[None, :4000], NOISE[None, 4000:8000]
    losses = [float(loss(scale * one, other)) for scale in (0.7, 0.8, 0.9, 1.0, 1.1, 1.3)]
    assert 2 <= losses.index(min(losses)) <= 4
    with pytest.raises(ValueError, match="same shape"):
        loss(x, x[:1])
    with pytest.raises(ValueError, match="at least a sample"):
        diffeo.objectives.PowerLoss(segment=0)
    with pytest.raises(ValueError, match="at least 4"):
        diffeo.objectives.PowerLoss(())


def test_bad_spectra_are_refused():
    with pytest.raises(ValueError, match="window of at least a hop"):
        magnitudes(NOISE, 32, 64)
    with pytest.raises(ValueError, match="at least one sample"):
        magnitudes(NOISE[:0], 64, 32)
    with pytest.raises(ValueError, match="fewer than 80 mel"):
        mel_filters(RATE, 128, 80)
    with pytest.raises(ValueError, match="low < high"):
        mel_filters(RATE, 128, 10, 500.0, 5000.0)


def test_rms_and_distances():
    assert sound.rms(TONE) == pytest.approx(0.3 / math.sqrt(2), rel=1e-6)
    assert sound.log_spectral_distance(NOISE, NOISE, RATE) == 0
    assert sound.log_spectral_distance(NOISE, 2 * NOISE, RATE) == pytest.approx(20 * math.log10(2), rel=1e-3)
    assert sound.spectral_distance([NOISE], [2 * NOISE, 2 * NOISE[:4000]], RATE) == pytest.approx(6.0, abs=0.5)
    assert sound.spectral_distance([NOISE], [VOICE], RATE) > 10
    with pytest.raises(ValueError, match="same length"):
        sound.log_spectral_distance(NOISE, NOISE[1:], RATE)


def test_flatness_and_voices():
    # of white noise the power is exponential, whose geometric mean is exp(-gamma) of its mean
    assert sound.flatness(NOISE, RATE) == pytest.approx(math.exp(-0.5772), abs=0.03)
    assert sound.flatness(TONE, RATE) < 0.01
    assert sound.voiced_share(VOICE, RATE) > 0.95
    assert sound.voiced_share(NOISE, RATE) < 0.05
    half = torch.cat([VOICE, NOISE * sound.rms(VOICE) / sound.rms(NOISE)])
    assert sound.voiced_share(half, RATE) == pytest.approx(0.5, abs=0.05)
    silent = torch.cat([VOICE, torch.zeros(8000, dtype=torch.float64)])
    assert sound.voiced_share(silent, RATE) > 0.9, "silence counts neither way"
    assert math.isnan(sound.voiced_share(NOISE[:100], RATE))
    measured = sound.measures([NOISE, NOISE[:4000]], RATE)
    assert measured["rms"]["mean"] == pytest.approx(0.1, rel=0.02)
    assert 0 < measured["flatness"]["stderr"] < 0.05
