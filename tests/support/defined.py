"""What an op is defined as, in torch, where no torch original computes it."""

import torch


def ms_deform_attn(shapes):
    """Torch, point by point: a sum of four pixels, those outside left out."""

    def attend(value, locations, weights):
        batch, queries, heads, _, points, _ = locations.shape
        total = torch.zeros(batch, queries, heads, value.shape[-1], dtype=value.dtype)
        n, m = torch.arange(batch)[:, None, None], torch.arange(heads)
        start = 0
        for level, (height, width) in enumerate(shapes):
            for point in range(points):
                x = locations[:, :, :, level, point, 0] * width - 0.5
                y = locations[:, :, :, level, point, 1] * height - 0.5
                for dy in (0, 1):
                    for dx in (0, 1):
                        i, j = y.detach().floor() + dy, x.detach().floor() + dx
                        inside = (i >= 0) & (i < height) & (j >= 0) & (j < width)
                        row = start + i.clamp(0, height - 1).long() * width + j.clamp(0, width - 1).long()
                        share = (1 - (i - y if dy else y - i)) * (1 - (j - x if dx else x - j))
                        share = torch.where(inside, share * weights[:, :, :, level, point], 0.0)
                        total = total + share[..., None] * value[n, row, m]
            start += height * width
        return total.flatten(2)

    return attend
