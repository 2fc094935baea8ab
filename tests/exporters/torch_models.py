"""Small networks of the families that people export from PyTorch, with random weights, and what they take.

Each function gives a module in evaluation mode and its example inputs; `DYNAMIC` names the axes that vary.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

BATCH = {0: "batch"}
BATCH_AND_LENGTH = {0: "batch", 1: "length"}


def conv_bn(i, o, k=3, s=1, groups=1, act=nn.ReLU):
    layers = [nn.Conv2d(i, o, k, s, k // 2, groups=groups, bias=False), nn.BatchNorm2d(o)]
    return nn.Sequential(*layers, *([act()] if act else []))


def randomize(module):
    """Statistics and scales of normalizations as training leaves them: not zeros and ones."""
    for m in module.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(m.running_mean, -0.3, 0.3)
            nn.init.uniform_(m.running_var, 0.5, 1.5)
        if isinstance(m, (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)):
            nn.init.uniform_(m.weight, 0.5, 1.5)
            nn.init.uniform_(m.bias, -0.2, 0.2)
    return module.eval()


def image(n=2, c=3, size=32):
    return torch.randn(n, c, size, size)


def mlp():
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 32), nn.BatchNorm1d(32), nn.LeakyReLU(0.1),
                        nn.Linear(32, 16), nn.ELU(), nn.Dropout(), nn.Linear(16, 5), nn.LogSoftmax(1))
    return net, (torch.randn(3, 3, 4, 4),), BATCH


def resnet():
    class Block(nn.Module):
        def __init__(self, i, o, s):
            super().__init__()
            self.body = nn.Sequential(conv_bn(i, o, s=s), conv_bn(o, o, act=None))
            self.skip = conv_bn(i, o, 1, s, act=None) if s > 1 or i != o else nn.Identity()

        def forward(self, x):
            return F.relu(self.body(x) + self.skip(x))

    net = nn.Sequential(conv_bn(3, 8, 7, 2), nn.MaxPool2d(3, 2, 1), Block(8, 8, 1), Block(8, 16, 2),
                        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))
    return net, (image(),), BATCH


class SqueezeExcite(nn.Module):
    def __init__(self, c, act):
        super().__init__()
        self.act = act
        self.down, self.up = nn.Conv2d(c, c // 4, 1), nn.Conv2d(c // 4, c, 1)

    def forward(self, x):
        gate = self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1))))
        return x * self.act(gate)


def inverted(i, o, k, s, act, gate=None):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            middle = 4 * i
            layers = [conv_bn(i, middle, 1, act=act), conv_bn(middle, middle, k, s, middle, act)]
            layers += [SqueezeExcite(middle, gate)] if gate else []
            self.body = nn.Sequential(*layers, conv_bn(middle, o, 1, act=None))
            self.add = s == 1 and i == o

        def forward(self, x):
            return x + self.body(x) if self.add else self.body(x)

    return Block()


def mobilenet_v2():
    net = nn.Sequential(conv_bn(3, 8, 3, 2, act=nn.ReLU6), inverted(8, 8, 3, 1, nn.ReLU6),
                        inverted(8, 12, 3, 2, nn.ReLU6), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 7))
    return net, (image(),), BATCH


def mobilenet_v3():
    net = nn.Sequential(conv_bn(3, 8, 3, 2, act=nn.Hardswish), inverted(8, 8, 5, 1, nn.Hardswish, nn.Hardsigmoid()),
                        inverted(8, 12, 3, 2, nn.ReLU, nn.Hardsigmoid()), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                        nn.Linear(12, 16), nn.Hardswish(), nn.Linear(16, 7))
    return net, (image(),), BATCH


def efficientnet():
    net = nn.Sequential(conv_bn(3, 8, 3, 2, act=nn.SiLU), inverted(8, 8, 3, 1, nn.SiLU, nn.Sigmoid()),
                        inverted(8, 12, 5, 2, nn.SiLU, nn.Sigmoid()), nn.AdaptiveAvgPool2d(1), nn.Flatten(1),
                        nn.Linear(12, 7))
    return net, (image(),), BATCH


def densenet():
    class Dense(nn.Module):
        def __init__(self, i):
            super().__init__()
            self.a, self.b = (nn.Sequential(nn.BatchNorm2d(c), nn.ReLU(), nn.Conv2d(c, 6, 3, padding=1))
                              for c in (i, i + 6))

        def forward(self, x):
            x = torch.cat([x, self.a(x)], 1)
            return torch.cat([x, self.b(x)], 1)

    net = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), Dense(8), nn.Conv2d(20, 10, 1), nn.AvgPool2d(2), Dense(10),
                        nn.AdaptiveAvgPool2d((1, 1)), nn.Flatten(), nn.Linear(22, 4))
    return net, (image(),), BATCH


def inception():
    class Branches(nn.Module):
        def __init__(self, i):
            super().__init__()
            self.a = conv_bn(i, 4, 1)
            self.b = nn.Sequential(conv_bn(i, 4, 1), conv_bn(4, 6, 5))
            self.c = nn.Sequential(nn.MaxPool2d(3, 1, 1, ceil_mode=True), conv_bn(i, 4, 1))
            self.d = nn.Sequential(nn.Conv2d(i, 4, (1, 7), padding=(0, 3)), nn.Conv2d(4, 4, (7, 1), padding=(3, 0)))

        def forward(self, x):
            return torch.cat([self.a(x), self.b(x), self.c(x), self.d(x)], 1)

    net = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.LocalResponseNorm(5), Branches(8),
                        nn.MaxPool2d(3, 2, ceil_mode=True), nn.AvgPool2d(3, 2, 1, count_include_pad=False),
                        Branches(18), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(18, 6))
    return net, (image(),), BATCH


def shufflenet():
    class Unit(nn.Module):
        def __init__(self, c):
            super().__init__()
            self.body = nn.Sequential(conv_bn(c, c, 1), conv_bn(c, c, 3, 1, c, None), conv_bn(c, c, 1))

        def forward(self, x):
            a, b = x.chunk(2, 1)
            x = torch.cat([a, self.body(b)], 1)
            n, c, h, w = x.shape
            return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)

    net = nn.Sequential(conv_bn(3, 16, 3, 2), Unit(8), Unit(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))
    return net, (image(),), BATCH


def convnext():
    class Block(nn.Module):
        def __init__(self, c):
            super().__init__()
            self.dw, self.norm = nn.Conv2d(c, c, 7, padding=3, groups=c), nn.LayerNorm(c)
            self.up, self.down = nn.Linear(c, 4 * c), nn.Linear(4 * c, c)
            self.gamma = nn.Parameter(torch.rand(c))

        def forward(self, x):
            y = self.dw(x).permute(0, 2, 3, 1)
            y = self.gamma * self.down(F.gelu(self.up(self.norm(y))))
            return x + y.permute(0, 3, 1, 2)

    net = nn.Sequential(nn.Conv2d(3, 12, 4, 4), Block(12), Block(12), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                        nn.LayerNorm(12), nn.Linear(12, 5))
    return net, (image(),), BATCH


def unet():
    class UNet(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = conv_bn(3, 8), conv_bn(8, 16), conv_bn(16, 16)
            self.up1, self.up2 = nn.ConvTranspose2d(16, 16, 2, 2), nn.ConvTranspose2d(16, 8, 3, 2, 1, 1)
            self.d1, self.d2, self.head = conv_bn(32, 16), conv_bn(16, 8), nn.Conv2d(8, 2, 1)

        def forward(self, x):
            a = self.a(x)
            b = self.b(F.max_pool2d(a, 2))
            c = self.c(F.max_pool2d(b, 2))
            b = self.d1(torch.cat([self.up1(c), b], 1))
            return self.head(self.d2(torch.cat([self.up2(b), a], 1)))

    return UNet(), (image(1),), BATCH


def deeplab():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = conv_bn(3, 8, 3, 2)
            self.rates = nn.ModuleList(nn.Conv2d(8, 4, 3, padding=r, dilation=r) for r in (1, 2, 4))
            self.pool, self.head = nn.Conv2d(8, 4, 1), nn.Conv2d(16, 3, 1)

        def forward(self, x):
            y = self.stem(x)
            pooled = F.interpolate(self.pool(F.adaptive_avg_pool2d(y, 1)), size=y.shape[2:], mode="bilinear",
                                   align_corners=False)
            y = self.head(torch.cat([r(y) for r in self.rates] + [pooled], 1))
            return F.interpolate(y, size=x.shape[2:], mode="bilinear", align_corners=True).argmax(1), y

    return Net(), (image(1),), BATCH


def yolo():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = conv_bn(3, 8, 3, 2, act=nn.SiLU), conv_bn(8, 16, 3, 2, act=nn.SiLU)
            self.c = conv_bn(64, 16, 1, act=nn.SiLU)
            self.merge, self.head = conv_bn(24, 16, act=nn.SiLU), nn.Conv2d(16, 8, 1)
            grid = torch.stack(torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij"), 0)
            self.register_buffer("grid", grid.view(1, 2, -1))

        def forward(self, x):
            a = self.a(x)
            b = self.b(a)
            pools = [b]
            for _ in range(3):
                pools.append(F.max_pool2d(pools[-1], 5, 1, 2))
            b = self.c(torch.cat(pools, 1))
            y = self.head(self.merge(torch.cat([F.interpolate(b, scale_factor=2.0, mode="nearest"), a], 1)))
            box, score = y.flatten(2).split([4, 4], 1)
            near, far = box.chunk(2, 1)
            low, high = self.grid - near, self.grid + far
            return torch.cat([(low + high) / 2, high - low, score.sigmoid()], 1)

    return Net(), (image(1),), BATCH


class Attention(nn.Module):
    def __init__(self, d, heads):
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(d, 3 * d), nn.Linear(d, d)

    def forward(self, x, mask=None):
        n, t, d = x.shape
        q, k, v = self.qkv(x).view(n, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        scores = q @ k.transpose(-2, -1) / math.sqrt(d // self.heads)
        if mask is not None:
            scores = scores.masked_fill(mask == 0, -1e9)
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(n, t, d))


class Layer(nn.Module):
    def __init__(self, d, heads=4):
        super().__init__()
        self.a, self.b, self.attention = nn.LayerNorm(d), nn.LayerNorm(d), Attention(d, heads)
        self.mlp = nn.Sequential(nn.Linear(d, 2 * d), nn.GELU(), nn.Linear(2 * d, d))

    def forward(self, x, mask=None):
        x = x + self.attention(self.a(x), mask)
        return x + self.mlp(self.b(x))


def vit():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.patch = nn.Conv2d(3, 32, 8, 8)
            self.token = nn.Parameter(torch.randn(1, 1, 32))
            self.place = nn.Parameter(torch.randn(1, 17, 32))
            self.layers, self.head = nn.ModuleList(Layer(32) for _ in range(2)), nn.Linear(32, 5)

        def forward(self, x):
            x = self.patch(x).flatten(2).transpose(1, 2)
            x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.place
            for layer in self.layers:
                x = layer(x)
            return self.head(x[:, 0])

    return Net(), (image(),), BATCH


def swin():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.patch, self.layer = nn.Conv2d(3, 16, 4, 4), Layer(16)
            self.merge, self.head = nn.Linear(64, 32, bias=False), nn.Linear(32, 5)

        def forward(self, x):
            x = self.patch(x).permute(0, 2, 3, 1)
            x = torch.roll(x, (-2, -2), (1, 2))
            n, h, w, c = x.shape
            x = x.view(n, h // 4, 4, w // 4, 4, c).transpose(2, 3).reshape(-1, 16, c)
            x = self.layer(x).view(n, h // 4, w // 4, 4, 4, c).transpose(2, 3).reshape(n, h, w, c)
            x = torch.roll(x, (2, 2), (1, 2))
            x = torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], -1)
            return self.head(self.merge(x).mean((1, 2)))

    return Net(), (image(),), BATCH


def bert():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.places = nn.Embedding(50, 32), nn.Embedding(64, 32)
            self.norm, self.layers = nn.LayerNorm(32), nn.ModuleList(Layer(32) for _ in range(2))

        def forward(self, ids, mask):
            x = self.norm(self.words(ids) + self.places(torch.arange(ids.shape[1])[None]))
            for layer in self.layers:
                x = layer(x, mask[:, None, None])
            weight = mask[..., None].float()
            pooled = (x * weight).sum(1) / weight.sum(1).clamp(min=1e-9)
            return F.normalize(pooled, p=2.0, dim=1)

    mask = torch.ones(2, 9, dtype=torch.int64)
    mask[1, 5:] = 0
    return Net(), (torch.randint(0, 50, (2, 9)), mask), BATCH_AND_LENGTH


def gpt():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.places = nn.Embedding(50, 32), nn.Embedding(64, 32)
            self.layers, self.head = nn.ModuleList(Layer(32) for _ in range(2)), nn.Linear(32, 50, bias=False)

        def forward(self, ids):
            t = ids.shape[1]
            x = self.words(ids) + self.places(torch.arange(t))
            mask = torch.tril(torch.ones(t, t))
            for layer in self.layers:
                x = layer(x, mask)
            return self.head(x)

    return Net(), (torch.randint(0, 50, (2, 7)),), BATCH_AND_LENGTH


def llama():
    class Net(nn.Module):
        def __init__(self, d=32, heads=4):
            super().__init__()
            self.words, self.heads = nn.Embedding(50, d), heads
            self.q, self.k, self.v, self.o = (nn.Linear(d, o, bias=False) for o in (d, d // 2, d // 2, d))
            self.gate, self.up, self.down = (nn.Linear(*s, bias=False) for s in ((d, 48), (d, 48), (48, d)))
            self.scale = nn.Parameter(torch.rand(d) + 0.5)

        def norm(self, x):
            return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.scale

        def rotate(self, x):
            half = x.shape[-1] // 2
            angles = torch.arange(x.shape[2]).float()[:, None] / 100.0 ** (torch.arange(half) / half)
            a, b = x[..., :half], x[..., half:]
            return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], -1)

        def forward(self, ids):
            x = self.words(ids)
            n, t, d = x.shape
            y = self.norm(x)
            split = lambda z, h: z.view(n, t, h, -1).transpose(1, 2)
            q, k, v = split(self.q(y), self.heads), split(self.k(y), 2), split(self.v(y), 2)
            k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
            y = F.scaled_dot_product_attention(self.rotate(q), self.rotate(k), v, is_causal=True)
            x = x + self.o(y.transpose(1, 2).reshape(n, t, d))
            y = self.norm(x)
            return x + self.down(F.silu(self.gate(y)) * self.up(y))

    return Net(), (torch.randint(0, 50, (2, 6)),), BATCH


def lstm():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.words = nn.Embedding(40, 16)
            self.rnn = nn.LSTM(16, 12, 2, batch_first=True, bidirectional=True)
            self.head = nn.Linear(24, 3)

        def forward(self, ids):
            y, (h, _) = self.rnn(self.words(ids))
            return self.head(y[:, -1]), h

    return Net(), (torch.randint(0, 40, (2, 11)),), {1: "length"}


def gru():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = nn.GRU(8, 12, batch_first=True, bidirectional=True), nn.Linear(24, 4)

        def forward(self, x):
            return self.head(torch.tanh(self.rnn(x)[0]))

    return Net(), (torch.randn(2, 10, 8),), {1: "length"}


def wavenet():
    class Block(nn.Module):
        def __init__(self, dilation):
            super().__init__()
            self.pad, self.conv, self.out = dilation, nn.Conv1d(8, 16, 2, dilation=dilation), nn.Conv1d(8, 8, 1)

        def forward(self, x):
            y = self.conv(F.pad(x, (self.pad, 0)))
            return x + self.out(F.glu(y, 1))

    net = nn.Sequential(nn.Conv1d(1, 8, 1), Block(1), Block(2), Block(4), nn.Softplus(), nn.Conv1d(8, 4, 1))
    return net, (torch.randn(2, 1, 40),), BATCH


def crnn():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(conv_bn(1, 8), nn.MaxPool2d(2), conv_bn(8, 16), nn.MaxPool2d((2, 1), (2, 1)))
            self.rnn, self.head = nn.LSTM(64, 16, bidirectional=True), nn.Linear(32, 11)

        def forward(self, x):
            y = self.body(x)
            y = y.flatten(1, 2).permute(2, 0, 1)
            return self.head(self.rnn(y)[0]).log_softmax(-1)

    return Net(), (torch.randn(1, 1, 16, 48),), {}


def vae():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.encode = nn.Sequential(nn.Conv2d(3, 8, 4, 2, 1), nn.PReLU(8), nn.Flatten(), nn.Linear(8 * 256, 16))
            self.decode = nn.Sequential(nn.Linear(8, 8 * 64), nn.Unflatten(1, (8, 8, 8)), nn.SELU(),
                                        nn.ConvTranspose2d(8, 8, 4, 2, 1), nn.Mish(), nn.ConvTranspose2d(8, 3, 4, 2, 1))

        def forward(self, x):
            mean, deviation = self.encode(x).chunk(2, 1)
            return torch.sigmoid(self.decode(mean + torch.exp(0.5 * deviation))), mean

    return Net(), (image(),), BATCH


def dlrm():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.tables = nn.ModuleList(nn.Embedding(20, 8) for _ in range(3))
            self.bottom, self.top = nn.Linear(5, 8), nn.Linear(8 + 6, 1)
            self.register_buffer("pairs", torch.tensor([[i, j] for i in range(4) for j in range(i)]))

        def forward(self, dense, sparse):
            x = F.relu(self.bottom(dense))
            all_ = torch.stack([x] + [t(sparse[:, i]) for i, t in enumerate(self.tables)], 1)
            products = torch.bmm(all_, all_.transpose(1, 2))
            products = products[:, self.pairs[:, 0], self.pairs[:, 1]]
            return torch.sigmoid(self.top(torch.cat([x, products], 1)))

    return Net(), (torch.randn(4, 5), torch.randint(0, 20, (4, 3))), BATCH


def pointnet():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Conv1d(3, 16, 1), nn.BatchNorm1d(16), nn.ReLU(), nn.Conv1d(16, 24, 1))
            self.head = nn.Linear(24, 5)

        def forward(self, x):
            return self.head(self.body(x).max(2).values)

    return Net(), (torch.randn(2, 3, 50),), BATCH


def video():
    net = nn.Sequential(nn.Conv3d(3, 8, 3, padding=1), nn.BatchNorm3d(8), nn.ReLU(), nn.MaxPool3d(2),
                        nn.Conv3d(8, 8, (1, 3, 3), groups=2), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(),
                        nn.Linear(8, 4))
    return net, (torch.randn(2, 3, 4, 12, 12),), BATCH


def super_resolution():
    net = nn.Sequential(nn.Conv2d(1, 8, 5, padding=2), nn.Tanh(), nn.Conv2d(8, 8, 3, padding=1), nn.Hardtanh(),
                        nn.Conv2d(8, 4, 3, padding=1), nn.PixelShuffle(2))
    return net, (torch.randn(1, 1, 12, 14),), BATCH


def style():
    net = nn.Sequential(nn.ReflectionPad2d(4), nn.Conv2d(3, 8, 9), nn.InstanceNorm2d(8, affine=True), nn.ReLU(),
                        nn.Conv2d(8, 8, 3, 2, 1), nn.InstanceNorm2d(8, affine=True), nn.Softsign(),
                        nn.Upsample(scale_factor=2, mode="nearest"), nn.ReplicationPad2d(1), nn.Conv2d(8, 3, 3))
    return net, (image(1),), BATCH


def diffusion():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.norm, self.b = nn.Conv2d(4, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.Conv2d(16, 16, 3, padding=1)
            self.time, self.attention, self.out = nn.Linear(16, 16), Attention(16, 2), nn.Conv2d(16, 4, 3, padding=1)

        def forward(self, x, t):
            freqs = torch.exp(torch.arange(8) * (-math.log(10000.0) / 8))
            angles = t.float()[:, None] * freqs[None]
            y = self.a(x) + self.time(torch.cat([angles.sin(), angles.cos()], 1))[:, :, None, None]
            y = self.b(F.silu(self.norm(y)))
            n, c, h, w = y.shape
            z = self.attention(y.view(n, c, h * w).transpose(1, 2)).transpose(1, 2).reshape(n, c, h, w)
            return self.out(y + z)

    return Net(), (torch.randn(2, 4, 8, 8), torch.tensor([3, 70])), BATCH


def spatial_transformer():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.locate, self.head = nn.Linear(3 * 16 * 16, 4), nn.Conv2d(3, 4, 3)

        def forward(self, x):
            theta = torch.tanh(self.locate(x.flatten(1)))
            ys, xs = torch.meshgrid(torch.linspace(-1, 1, 16), torch.linspace(-1, 1, 16), indexing="ij")
            grid = torch.stack([xs, ys], -1)[None] * (1 + 0.1 * theta[:, None, None, :2]) + 0.1 * theta[:, None, None, 2:]
            return self.head(F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=True))

    return Net(), (image(2, 3, 16),), BATCH


def mixture():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate = nn.Linear(8, 4)
            self.up, self.down = nn.Parameter(torch.randn(4, 8, 12)), nn.Parameter(torch.randn(4, 12, 8))

        def forward(self, x):
            weight, chosen = self.gate(x).softmax(-1).topk(2, -1)
            every = torch.einsum("nd,edh->neh", x, self.up).relu()
            every = torch.einsum("neh,ehd->ned", every, self.down)
            picked = every.gather(1, chosen[..., None].expand(-1, -1, 8))
            return (picked * weight[..., None]).sum(1), chosen

    return Net(), (torch.randn(6, 8),), BATCH


def detector():
    class Net(nn.Module):
        """Scores, the best ones, and the boxes that go with them; scattered back into a heat map."""

        def __init__(self):
            super().__init__()
            self.body, self.score, self.box = conv_bn(3, 8, 3, 2), nn.Conv2d(8, 1, 1), nn.Conv2d(8, 4, 1)

        def forward(self, x):
            y = self.body(x)
            score, box = self.score(y).flatten(1).sigmoid(), self.box(y).flatten(2).transpose(1, 2)
            top, place = score.topk(5, 1)
            boxes = box.gather(1, place[..., None].expand(-1, -1, 4)).clamp(0.0, 16.0)
            heat = torch.zeros_like(score).scatter(1, place, top)
            return top, boxes, heat, torch.where(score > 0.5, score, -score).cumsum(1)

    return Net(), (image(2, 3, 16),), BATCH


def t5():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.bias = nn.Embedding(40, 16), nn.Embedding(8, 2)
            self.q, self.k, self.v = (nn.Linear(16, 16, bias=False) for _ in range(3))

        def forward(self, ids):
            x = self.words(ids)
            n, t, _ = x.shape
            far = torch.arange(t)[None] - torch.arange(t)[:, None]
            bucket = torch.where(far > 0, 4, 0) + torch.minimum(far.abs(), torch.tensor(3))
            split = lambda z: z.view(n, t, 2, 8).transpose(1, 2)
            scores = split(self.q(x)) @ split(self.k(x)).transpose(2, 3) + self.bias(bucket).permute(2, 0, 1)[None]
            return (scores.softmax(-1) @ split(self.v(x))).transpose(1, 2).reshape(n, t, 16)

    return Net(), (torch.randint(0, 40, (2, 8)),), BATCH


def half():
    net = nn.Sequential(conv_bn(3, 8, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4), nn.Softmax(1))
    return randomize(net).half(), (image().half(),), BATCH


MODELS = [mlp, resnet, mobilenet_v2, mobilenet_v3, efficientnet, densenet, inception, shufflenet, convnext, unet,
          deeplab, yolo, vit, swin, bert, gpt, llama, lstm, gru, wavenet, crnn, vae, dlrm, pointnet, video,
          super_resolution, style, diffusion, spatial_transformer, mixture, detector, t5, half]
