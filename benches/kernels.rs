//! How near the integer kernels come to what their instructions can do: `cargo bench --bench kernels [filter]`.
//!
//! Each line is a kernel on a shape, in billions of products a second, and its share of the peak: the same
//! instructions in the same proportions on registers alone, measured in the same run. Figures are the best of many
//! short runs, so that a busy machine does not lower them.

use octet::engine::kernels::depthwise::PackedDepthwise;
use octet::engine::kernels::gemm_int8::{Form, PackedInt8};
use octet::engine::kernels::isa::Isa;
use octet::engine::kernels::winograd::PackedWinograd;
use octet::engine::kernels::winograd_transform::Transform;
use octet::engine::kernels::{IntOutput, Requant, Window};
use std::time::{Duration, Instant};

fn main() {
    // `cargo bench` adds an option of its own.
    let filter = std::env::args().skip(1).find(|arg| !arg.starts_with('-')).unwrap_or_default();
    println!("peak of instruction sequences        GMAC/s");
    for (name, sequence) in Sequence::ALL.into_iter().filter(|(_, sequence)| sequence.available()) {
        let (peak, _) = measure(10_000_000, &[], || sequence.run(10_000_000));
        println!("{name:36} {peak:6.1}");
    }
    dense(&filter);
    winograd(&filter);
    depthwise(&filter);
}

/// A square image and a square kernel.
fn window(batch: usize, size: usize, kernel: usize, stride: usize) -> Window {
    let out = (size - 1) / stride + 1;
    Window {
        batch,
        in_h: size,
        in_w: size,
        out_h: out,
        out_w: out,
        kernel_h: kernel,
        kernel_w: kernel,
        stride_h: stride,
        stride_w: stride,
        dilation_h: 1,
        dilation_w: 1,
        pad_top: kernel / 2,
        pad_left: kernel / 2,
    }
}

/// Convolutions of 3x3 by Winograd and directly, on one thread. Products are those of the direct form; the share is of
/// what its instructions could do with so many fewer multiplications.
fn winograd(filter: &str) {
    println!("\nconvolution 3x3             batch  size inputs outputs  GMAC/s  peak  direct");
    let by = |isa: Isa| match isa.name() {
        "avx2" => vec![(Transform::F2, Sequence::Words), (Transform::F4, Sequence::Words)],
        "avx512vnni" => vec![(Transform::F4, Sequence::WideWords)],
        _ => vec![],
    };
    for (isa, transform, sequence) in
        Isa::available().into_iter().flat_map(|isa| by(isa).into_iter().map(move |(t, s)| (isa, t, s)))
    {
        let name = format!("{} winograd {transform:?}", isa.name());
        for (batch, size, inputs, outputs) in WINOGRAD_SHAPES.into_iter().filter(|_| name.contains(filter)) {
            let window = window(batch, size, 3, 1);
            let codes: Vec<i8> = (0..outputs * 9 * inputs).map(|i| (i * 37 % 255) as i8 / 2).collect();
            let x: Vec<u8> = (0..window.pixels() * inputs).map(|i| (i * 31 % 256) as u8).collect();
            let (bias, multiplier) = (vec![0; outputs], vec![1e-4; outputs]);
            let requant = codes_of(&bias, &multiplier);
            let mut y = vec![0; window.rows() * outputs];
            let products = window.rows() * 9 * inputs * outputs;
            let tiles = PackedWinograd::pack(isa, transform, &codes, outputs, inputs);
            let outputs_of_tile = transform.outputs() * transform.outputs();
            let fewer = transform.positions() as f32 / (9 * outputs_of_tile) as f32;
            let (gmacs, share) = measure(products, &[(fewer, sequence)], || {
                let out = IntOutput::U8(&mut y, &requant);
                tiles.conv(&x, inputs, 0, &window, 7, out, outputs, 0, 1);
            });
            let direct = PackedInt8::pack(isa, &codes, outputs, 9, inputs);
            let (direct, _) = measure(products, &[], || {
                let out = IntOutput::U8(&mut y, &requant);
                direct.conv(&x, inputs, 0, &window, 7, out, outputs, 0, 1);
            });
            let share = 100.0 * share;
            println!(
                "{name:27} {batch:5} {size:5} {inputs:6} {outputs:7} {gmacs:7.1} {share:4.0}% {direct:7.1}"
            );
        }
    }
}

/// Depthwise convolutions, on one thread.
fn depthwise(filter: &str) {
    println!("\ndepthwise convolution        size channels kernel stride  GMAC/s");
    for isa in Isa::available().into_iter().filter(|isa| *isa != Isa::Scalar) {
        let name = format!("{} depthwise", isa.name());
        for (size, channels, kernel, stride) in
            DEPTHWISE_SHAPES.into_iter().filter(|_| name.starts_with(filter))
        {
            let window = window(1, size, kernel, stride);
            let codes: Vec<i8> = (0..channels * kernel * kernel).map(|i| (i * 37 % 255) as i8).collect();
            let x: Vec<u8> = (0..window.pixels() * channels).map(|i| (i * 31 % 256) as u8).collect();
            let (bias, multiplier) = (vec![0; channels], vec![1e-3; channels]);
            let requant = codes_of(&bias, &multiplier);
            let mut y = vec![0; window.rows() * channels];
            let packed = PackedDepthwise::pack(isa, &codes, channels, &window, false);
            let (gmacs, _) = measure(window.rows() * channels * kernel * kernel, &[], || {
                packed.conv(&x, &window, 7, IntOutput::U8(&mut y, &requant), 1);
            });
            println!("{name:27} {size:6} {channels:8} {kernel:6} {stride:6} {gmacs:7.1}");
        }
    }
}

/// Outputs as codes.
fn codes_of<'a>(bias: &'a [i32], multiplier: &'a [f32]) -> Requant<'a> {
    Requant { bias, multiplier, zero_point: 7, lo: 0, hi: 255, table: None, sum: None }
}

/// Batch, size, inputs and outputs.
const WINOGRAD_SHAPES: [(usize, usize, usize, usize); 8] = [
    (1, 56, 64, 64),
    (1, 28, 128, 128),
    (1, 14, 256, 256),
    (1, 7, 512, 512),
    (8, 14, 256, 256),
    (8, 7, 512, 512),
    (1, 80, 64, 64),
    (1, 40, 64, 64),
];

/// Size, channels, kernel and stride.
const DEPTHWISE_SHAPES: [(usize, usize, usize, usize); 9] = [
    (112, 32, 3, 1),
    (112, 96, 3, 2),
    (56, 144, 3, 1),
    (56, 144, 3, 2),
    (28, 192, 3, 1),
    (14, 576, 3, 1),
    (7, 960, 3, 1),
    (28, 240, 5, 1),
    (14, 672, 5, 2),
];

/// Products of matrices, `[rows, depth]` by `[depth, columns]`, on one thread.
fn dense(filter: &str) {
    println!("\ndense product                 rows depth columns  GMAC/s  peak  form");
    for isa in Isa::available().into_iter().filter(|&isa| isa != Isa::Scalar) {
        for (name, codes) in WEIGHTS {
            let name = format!("{} {name}", isa.name());
            for (rows, depth, columns) in DENSE_SHAPES.into_iter().filter(|_| name.starts_with(filter)) {
                let packed = PackedInt8::pack(isa, &codes(columns, depth), columns, 1, depth);
                let a: Vec<u8> = (0..rows * depth).map(|i| (i * 31 % 256) as u8).collect();
                let (bias, multiplier) = (vec![0; columns], vec![1e-4; columns]);
                let requant = codes_of(&bias, &multiplier);
                let mut y = vec![0; rows * columns];
                let form = packed.form();
                let (gmacs, share) = measure(rows * depth * columns, &sequences(isa, form), || {
                    packed.matmul(&a, rows, IntOutput::U8(&mut y, &requant), 1);
                });
                let share = 100.0 * share;
                println!("{name:28} {rows:5} {depth:5} {columns:7} {gmacs:7.1} {share:4.0}%  {form:.2?}");
            }
        }
    }
}

/// Rows, depth and columns.
const DENSE_SHAPES: [(usize, usize, usize); 7] = [
    (784, 64, 256),
    (784, 256, 64),
    (196, 576, 128),
    (196, 1024, 256),
    (196, 2304, 256),
    (49, 2048, 512),
    (49, 4608, 512),
];

/// `[columns, depth]`.
type Codes = fn(usize, usize) -> Vec<i8>;

/// What weights look like decides how they are packed on AVX2.
const WEIGHTS: [(&str, Codes); 5] = [
    ("bell to 64", |columns, depth| bells(columns, depth, 64.0, 0)),
    ("bell to 96", |columns, depth| bells(columns, depth, 96.0, 0)),
    ("heavy tails to 127", |columns, depth| bells(columns, depth, 127.0, 1)),
    ("even to 64", |columns, depth| even(columns, depth, 64)),
    ("even to 127", |columns, depth| even(columns, depth, 127)),
];

/// Codes between `-most` and `most`, all as likely.
fn even(columns: usize, depth: usize, most: i32) -> Vec<i8> {
    let mut random = Random(7);
    (0..columns * depth).map(|_| ((random.unit() * f64::from(2 * most + 1)) as i32 - most) as i8).collect()
}

/// Normally distributed codes whose largest in a column is `most`; heavier tails where `tails` is 1.
fn bells(columns: usize, depth: usize, most: f64, tails: i32) -> Vec<i8> {
    let mut random = Random(5);
    let mut codes = Vec::with_capacity(columns * depth);
    for _ in 0..columns {
        let mut value = || random.bell() * (0.4 + random.bell().abs()).powi(tails);
        let column: Vec<f64> = (0..depth).map(|_| value()).collect();
        let largest = column.iter().fold(0f64, |a, b| a.max(b.abs()));
        codes.extend(column.iter().map(|v| (v / largest * most).round() as i8));
    }
    codes
}

/// Marsaglia's xorshift: the same numbers on every run.
struct Random(u64);

impl Random {
    /// From 0 up to 1.
    fn unit(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Normally distributed, about: the sum of twelve.
    fn bell(&mut self) -> f64 {
        (0..12).map(|_| self.unit()).sum::<f64>() - 6.0
    }
}

/// Measures `f`, which does `products`: billions a second in its best run, and the share of the speed of the
/// sequences in `mix`, each with its part of the products. These run by turns, and the median counts: clocks and
/// neighbours change while a benchmark runs.
fn measure(products: usize, mix: &[(f32, Sequence)], mut f: impl FnMut()) -> (f64, f64) {
    let (start, mut best, mut shares) = (Instant::now(), Duration::MAX, Vec::new());
    while start.elapsed() < Duration::from_millis(200) {
        let start = Instant::now();
        f();
        let time = start.elapsed();
        let start = Instant::now();
        mix.iter().for_each(|(part, sequence)| sequence.run((f64::from(*part) * products as f64) as usize));
        shares.push(start.elapsed().as_secs_f64() / time.as_secs_f64());
        best = best.min(time);
    }
    shares.sort_by(f64::total_cmp);
    (products as f64 / best.as_nanos() as f64, shares[shares.len() / 2])
}

/// What weights of a form are multiplied with.
fn sequences(isa: Isa, form: Form) -> Vec<(f32, Sequence)> {
    match form {
        Form::Quads if isa.name() == "amx" => vec![(1.0, Sequence::Matrix)],
        Form::Quads if isa.name() == "avxvnni" => vec![(1.0, Sequence::Dot256)],
        Form::Pairs | Form::BytePairs => vec![(1.0, Sequence::Words)],
        Form::Scheduled(shares) => vec![
            (shares.paired, Sequence::Paired),
            (shares.single, Sequence::Single),
            (shares.wide, Sequence::Wide),
        ],
        Form::Quads => vec![(1.0, Sequence::Dot512)],
    }
}

/// Instructions on registers alone.
#[derive(Clone, Copy)]
enum Sequence {
    /// `vpmaddwd`, `vpaddd`.
    Words,
    /// Two `vpmaddubsw`, `vpaddw`, `vpmaddwd`, `vpaddd`.
    Paired,
    /// `vpmaddubsw`, `vpmaddwd`, `vpaddd`.
    Single,
    /// A mask, a shift, four times `vpmaddwd` and `vpaddd`.
    Wide,
    /// `vpdpbusd` of 32 bytes.
    Dot256,
    /// `vpdpbusd` of 64 bytes.
    Dot512,
    /// `vpdpwssd` of 32 words.
    WideWords,
    /// `tdpbusd` of whole tiles, two by two.
    Matrix,
}

impl Sequence {
    const ALL: [(&str, Sequence); 8] = [
        ("vpmaddwd vpaddd", Sequence::Words),
        ("2 vpmaddubsw vpaddw vpmaddwd vpaddd", Sequence::Paired),
        ("vpmaddubsw vpmaddwd vpaddd", Sequence::Single),
        ("vpand vpsrlw 4 (vpmaddwd vpaddd)", Sequence::Wide),
        ("vpdpbusd ymm", Sequence::Dot256),
        ("vpdpbusd zmm", Sequence::Dot512),
        ("vpdpwssd zmm", Sequence::WideWords),
        ("tdpbusd", Sequence::Matrix),
    ];

    /// Whether this processor has the instructions.
    fn available(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return match self {
            Sequence::Dot256 => is_x86_feature_detected!("avxvnni"),
            Sequence::Dot512 | Sequence::WideWords => is_x86_feature_detected!("avx512vnni"),
            // Asks the system for the tiles, too.
            Sequence::Matrix => Isa::named("amx").is_some(),
            _ => is_x86_feature_detected!("avx2"),
        };
        #[cfg(not(target_arch = "x86_64"))]
        false
    }

    /// Does at least so many products.
    fn run(self, products: usize) {
        assert!(self.available(), "a sequence of this processor");
        #[cfg(target_arch = "x86_64")]
        match self {
            Sequence::Words => peak::words(products),
            Sequence::Paired => peak::paired(products),
            Sequence::Single => peak::single(products),
            Sequence::Wide => peak::wide(products),
            Sequence::Dot256 => peak::dot_256(products),
            Sequence::Dot512 => peak::dot_512(products),
            Sequence::WideWords => peak::wide_words(products),
            Sequence::Matrix => peak::matrix(products),
        }
    }
}

/// Loops of vector instructions that depend on each other as in a tile, and on nothing else. Registers 0 to 7 are
/// accumulators, 8 to 11 what is on its way, 12 to 15 operands.
#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "what an instruction sequence can do is measured on that very sequence")]
mod peak {
    use std::arch::asm;

    /// Tile configuration: palette 1, eight tiles of 16 rows of 64 bytes.
    #[repr(C, align(64))]
    struct Tiles([u8; 64]);

    const TILES: Tiles = {
        let mut tiles = [0; 64];
        tiles[0] = 1;
        let mut i = 0;
        while i < 8 {
            tiles[16 + 2 * i] = 64;
            tiles[48 + i] = 16;
            i += 1;
        }
        Tiles(tiles)
    };

    /// Four tiles of sums from two by two tiles of operands, over and over.
    pub(super) fn matrix(products: usize) {
        let rounds = products / (4 * 16 * 16 * 64) + 1;
        // SAFETY: the caller found the instruction set and the system gave the tiles; compilers use none.
        unsafe {
            asm!(
                "ldtilecfg [{tiles}]",
                "2:",
                "tdpbusd tmm0, tmm4, tmm6",
                "tdpbusd tmm1, tmm4, tmm7",
                "tdpbusd tmm2, tmm5, tmm6",
                "tdpbusd tmm3, tmm5, tmm7",
                "dec {n}",
                "jnz 2b",
                "tilerelease",
                tiles = in(reg) &TILES,
                n = inout(reg) rounds => _,
                options(nostack)
            );
        }
    }

    /// `$name(products)` does so many, `$products` a round: `$step` on each accumulator with its temporaries.
    macro_rules! peak {
        ($name:ident, $products:expr, [$($acc:literal $tmp:literal $more:literal),+], $step:ident) => {
            pub(super) fn $name(products: usize) {
                let rounds = products / $products + 1;
                // SAFETY: the caller found the instruction set; only registers named here change.
                unsafe {
                        asm!(
                            "2:",
                            $($step!($acc, $tmp, $more),)+
                            "dec {n}",
                            "jnz 2b",
                            n = inout(reg) rounds => _,
                            out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _,
                            out("xmm4") _, out("xmm5") _, out("xmm6") _, out("xmm7") _,
                            out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
                            out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _,
                            options(nomem, nostack)
                        );
                }
            }
        };
    }
    macro_rules! words_step {
        ($a:literal, $t:literal, $u:literal) => {
            concat!("vpmaddwd ymm", $t, ",ymm12,ymm13\nvpaddd ymm", $a, ",ymm", $a, ",ymm", $t)
        };
    }
    macro_rules! paired_step {
        ($a:literal, $t:literal, $u:literal) => {
            concat!(
                "vpmaddubsw ymm",
                $t,
                ",ymm12,ymm13\nvpmaddubsw ymm",
                $u,
                ",ymm12,ymm14\n",
                "vpaddw ymm",
                $t,
                ",ymm",
                $t,
                ",ymm",
                $u,
                "\nvpmaddwd ymm",
                $t,
                ",ymm",
                $t,
                ",ymm15\n",
                "vpaddd ymm",
                $a,
                ",ymm",
                $a,
                ",ymm",
                $t
            )
        };
    }
    macro_rules! single_step {
        ($a:literal, $t:literal, $u:literal) => {
            concat!(
                "vpmaddubsw ymm",
                $t,
                ",ymm12,ymm13\nvpmaddwd ymm",
                $t,
                ",ymm",
                $t,
                ",ymm15\n",
                "vpaddd ymm",
                $a,
                ",ymm",
                $a,
                ",ymm",
                $t
            )
        };
    }
    // Two registers of a row share the widened activations; the even half of this step stands for both.
    macro_rules! wide_step {
        ($a:literal, $t:literal, $u:literal) => {
            concat!(
                "vpand ymm",
                $t,
                ",ymm12,ymm13\nvpsrlw ymm",
                $u,
                ",ymm12,8\n",
                "vpmaddwd ymm10,ymm",
                $t,
                ",ymm14\nvpmaddwd ymm11,ymm",
                $u,
                ",ymm15\n",
                "vpaddd ymm",
                $a,
                ",ymm",
                $a,
                ",ymm10\nvpaddd ymm",
                $a,
                ",ymm",
                $a,
                ",ymm11\n",
                "vpmaddwd ymm10,ymm",
                $t,
                ",ymm15\nvpmaddwd ymm11,ymm",
                $u,
                ",ymm14\n",
                "vpaddd ymm",
                $a,
                ",ymm",
                $a,
                ",ymm10\nvpaddd ymm",
                $a,
                ",ymm",
                $a,
                ",ymm11"
            )
        };
    }
    macro_rules! dot_256_step {
        ($a:literal, $t:literal, $u:literal) => {
            concat!("{{vex}} vpdpbusd ymm", $a, ",ymm14,ymm15")
        };
    }
    macro_rules! dot_512_step {
        ($a:literal, $t:literal, $u:literal) => {
            concat!("vpdpbusd zmm", $a, ",zmm14,zmm15")
        };
    }
    macro_rules! wide_words_step {
        ($a:literal, $t:literal, $u:literal) => {
            concat!("vpdpwssd zmm", $a, ",zmm14,zmm15")
        };
    }
    macro_rules! peak_of_eight {
        ($name:ident, $products:expr, $step:ident) => {
            peak!(
                $name,
                8 * $products,
                [0 8 9, 1 10 11, 2 8 9, 3 10 11, 4 8 9, 5 10 11, 6 8 9, 7 10 11],
                $step
            );
        };
    }
    macro_rules! peak_of_twelve {
        ($name:ident, $products:expr, $step:ident) => {
            peak!(
                $name,
                12 * $products,
                [0 0 0, 1 0 0, 2 0 0, 3 0 0, 4 0 0, 5 0 0, 6 0 0, 7 0 0, 8 0 0, 9 0 0, 10 0 0, 11 0 0],
                $step
            );
        };
    }
    peak_of_eight!(words, 16, words_step);
    peak_of_eight!(paired, 64, paired_step);
    peak_of_eight!(single, 32, single_step);
    peak_of_eight!(wide, 64, wide_step);
    peak_of_twelve!(dot_256, 32, dot_256_step);
    peak_of_twelve!(dot_512, 64, dot_512_step);
    peak_of_twelve!(wide_words, 32, wide_words_step);
}
