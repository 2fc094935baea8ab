//! Every form of packed weights on every instruction set that runs here, against the reference.

use super::super::testing::{ADDED, Channels, Random, added, dense, window, windows};
use super::super::{Dequant, Requant, Sum, reference};
use super::*;

/// The weights as every instruction set may pack them, whatever it would choose.
fn every_form(codes: &[i8], out: usize, window: &Window, inputs: usize) -> Vec<PackedInt8> {
    let mut forms = Vec::new();
    let taps = window.taps();
    let lines = (window.dilation_w == 1).then_some(window.kernel_h);
    for isa in Isa::available() {
        forms.push(PackedInt8::pack(isa, codes, out, taps, inputs));
        forms.push(PackedInt8::pack_by(isa, codes, out, taps, inputs, false, lines));
        #[cfg(target_arch = "x86_64")]
        if let Isa::Avx2(avx2) = isa {
            let schedule = Schedule::pack(isa, codes, taps * inputs, usize::MAX).expect("at any cost");
            let bytes = pack(INT8_PAIRS, codes, out, lines);
            forms.push(PackedInt8 { isa, panels: Panels::Scheduled(avx2, schedule), ..forms[0].clone() });
            // The first two are the scalar ones: gathered, and by lines.
            forms.push(PackedInt8 { isa, panels: Panels::BytePairs(avx2, bytes), ..forms[1].clone() });
            for of_scalar in 0..2 {
                forms.push(PackedInt8 { isa, ..forms[of_scalar].clone() });
            }
        }
    }
    forms
}

/// Both outputs of a convolution on every instruction set, against the reference.
fn check(window: &Window, channels: Channels, pad: u8, threads: usize) {
    let mut random = Random::new(channels.inputs as u64 * 1000 + channels.outputs as u64);
    let Channels { inputs, in_stride, in_offset, outputs, out_stride, out_offset } = channels;
    let depth = window.taps() * inputs;
    let mut x = random.u8s(window.pixels() * in_stride);
    let mut codes = random.i8s(outputs * depth);
    // Large codes in some quads and small ones in others, so that a schedule has all its lists; the first row and
    // quads of the last column are at their extremes.
    codes.iter_mut().enumerate().for_each(|(i, code)| *code >>= (i % depth / 4 % 4) as i8);
    x.iter_mut().take(in_stride).for_each(|x| *x = 255);
    codes[(outputs - 1) * depth..].chunks_mut(4).step_by(2).for_each(|quad| quad.fill(-128));
    let bias: Vec<i32> = (0..outputs).map(|_| random.next() as i32 % 20_000).collect();
    let factor: Vec<f32> = (0..outputs)
        .map(|_| (random.next() % 999 + 1) as f32 * 1e-3 / (depth as f32).sqrt() / 90.0)
        .collect();
    let table: [u8; 256] = random.u8s(256).try_into().expect("256 codes");
    let acc = reference::conv_int8(&x, in_stride, in_offset, &codes, inputs, window, pad);
    let at = |row: usize, n: usize| row * out_stride + out_offset + n;
    let other = random.u8s(window.rows() * out_stride);
    let of_outputs: Vec<u8> = (0..acc.len()).map(|i| other[at(i / outputs, i % outputs)]).collect();
    for packed in every_form(&codes, outputs, window, inputs) {
        let name = format!(
            "{:?} {:?} {:?} {window:?} {channels:?} pad {pad}",
            packed.isa,
            packed.form(),
            packed.lines
        );
        let sums: Vec<i32> = codes.chunks(depth).map(|c| c.iter().map(|&c| i32::from(c)).sum()).collect();
        assert_eq!(packed.column_sums(), sums);
        for (lo, hi, zero_point, table) in
            [(0, 255, 128, None), (3, 200, 0, Some(&table)), (0, 255, 255, None)]
        {
            let requant = Requant { bias: &bias, multiplier: &factor, zero_point, lo, hi, table, sum: None };
            let want = reference::requantize(&acc, &requant);
            let mut y = vec![77; window.rows() * out_stride];
            let out = IntOutput::U8(&mut y, &requant);
            packed.conv(&x, in_stride, in_offset, window, pad, out, out_stride, out_offset, threads);
            for (i, &want) in want.iter().enumerate() {
                assert_eq!(y[at(i / outputs, i % outputs)], want, "{name} {i}");
            }
            let others = y
                .iter()
                .enumerate()
                .filter(|(i, _)| !(out_offset..out_offset + outputs).contains(&(i % out_stride)));
            assert!(others.into_iter().all(|(_, &v)| v == 77), "{name}: other channels are left alone");
            for form in [Some(ADDED.1), None] {
                let sum = Some(Sum { codes: &other, scales: ADDED.0, form });
                let out = IntOutput::U8(&mut y, &Requant { sum, ..requant });
                packed.conv(&x, in_stride, in_offset, window, pad, out, out_stride, out_offset, threads);
                for (i, &want) in added(&want, &of_outputs).iter().enumerate() {
                    assert_eq!(y[at(i / outputs, i % outputs)], want, "{name} {i} with a sum");
                }
            }
        }
        let mut y = vec![0; window.rows() * out_stride];
        let out = IntOutput::I32(&mut y, &bias);
        packed.conv(&x, in_stride, in_offset, window, pad, out, out_stride, out_offset, threads);
        for (i, &want) in acc.iter().enumerate() {
            let want = want.wrapping_add(bias[i % outputs]);
            assert_eq!(y[at(i / outputs, i % outputs)], want, "{name} {i} as sums");
        }
        let dequant = Dequant { bias: &bias, scale: &factor, then: None };
        let want = reference::dequantize_sums(&acc, &dequant);
        let mut y = vec![0.0; window.rows() * out_stride];
        let out = IntOutput::F32(&mut y, &dequant);
        packed.conv(&x, in_stride, in_offset, window, pad, out, out_stride, out_offset, threads);
        for (i, &want) in want.iter().enumerate() {
            assert_eq!(y[at(i / outputs, i % outputs)].to_bits(), want.to_bits(), "{name} {i} as float");
        }
    }
}

#[test]
fn products_of_every_depth_match_the_reference() {
    for depth in 1..=70 {
        check(&Window::of_rows(1 + depth % 14), dense(depth, 1 + depth * 7 % 40), 0, 1);
    }
    for (rows, depth, outputs) in [(0, 5, 3), (1, 300, 100), (13, 256, 64), (25, 1030, 33), (200, 64, 17)] {
        check(&Window::of_rows(rows), dense(depth, outputs), 0, 2);
    }
}

#[test]
fn every_number_of_rows_and_columns_matches_the_reference() {
    for rows in 1..=26 {
        check(&Window::of_rows(rows), dense(9, 2 * rows - 1), 0, 1);
        check(&Window::of_rows(rows), dense(8, 90 - rows), 0, 1);
    }
}

/// Sums on the way to 32 bits are largest here, of either sign, in every place of a quad and of a longer step.
#[test]
fn extremes_of_codes_and_weights_match_the_reference() {
    let (rows, depth, outputs) = (16, 44, 16);
    let bit = |i: usize, k: usize| i >> (k % 4) & 1 == 1;
    let at = |i: usize| (i / depth, i % depth);
    let x: Vec<u8> = (0..rows * depth).map(at).map(|(r, k)| if bit(r, k) { 255 } else { 0 }).collect();
    let codes: Vec<i8> =
        (0..outputs * depth).map(at).map(|(n, k)| if bit(n, k) { 127 } else { -128 }).collect();
    let window = Window::of_rows(rows);
    let want = reference::conv_int8(&x, depth, 0, &codes, depth, &window, 0);
    for packed in every_form(&codes, outputs, &window, depth) {
        let mut y = vec![0; rows * outputs];
        packed.matmul(&x, rows, IntOutput::I32(&mut y, &vec![0; outputs]), 1);
        assert_eq!(y, want, "{:?} {:?}", packed.isa, packed.form());
    }
}

/// Where products leave the range of `i32`, and just before.
#[test]
fn extremes_of_sums_and_factors_match_the_reference() {
    let (rows, depth, outputs) = (7, 8, 128);
    let mut random = Random::new(41);
    let (x, codes) = (random.u8s(rows * depth), random.i8s(outputs * depth));
    let bias: Vec<i32> = (0..outputs).map(|n| [i32::MAX - 300_000, i32::MIN + 300_000, 7][n % 3]).collect();
    let below_one = f32::from_bits(1f32.to_bits() - 1);
    let window = Window::of_rows(rows);
    let acc = reference::conv_int8(&x, depth, 0, &codes, depth, &window, 0);
    for odd_one in [below_one, 1.0, -1.0, -below_one, 1.5, 3e9, f32::INFINITY, 0.0] {
        // Panels that are all below one, and panels that are not.
        let factor: Vec<f32> = (0..outputs).map(|n| if n % 37 == 36 { odd_one } else { below_one }).collect();
        for zero_point in [0, 128, 255] {
            let (bias, multiplier) = (&bias[..], &factor[..]);
            let requant = Requant { bias, multiplier, zero_point, lo: 0, hi: 255, table: None, sum: None };
            let want = reference::requantize(&acc, &requant);
            for packed in every_form(&codes, outputs, &window, depth) {
                let mut y = vec![0; rows * outputs];
                packed.matmul(&x, rows, IntOutput::U8(&mut y, &requant), 1);
                assert_eq!(y, want, "{:?} {:?} {odd_one} {zero_point}", packed.isa, packed.form());
            }
        }
    }
}

#[test]
fn convolutions_match_the_reference() {
    for (i, window) in windows().iter().enumerate() {
        for (inputs, outputs, pad) in [(3, 16, 0), (16, 24, 128), (5, 7, 255), (32, 40, 3)] {
            check(window, dense(inputs, outputs), pad, 1 + i % 2);
        }
    }
}

#[test]
fn groups_and_concatenation_use_parts_of_a_pixel() {
    let part =
        Channels { inputs: 8, in_stride: 24, in_offset: 8, outputs: 12, out_stride: 30, out_offset: 7 };
    for window in windows() {
        check(&window, part, 9, 2);
    }
    let last = Channels { inputs: 4, in_stride: 7, in_offset: 3, outputs: 5, out_stride: 9, out_offset: 4 };
    check(&window(2, (6, 6), (3, 3), (1, 1), (1, 1), (1, 1)), last, 255, 1);
    check(&Window::of_rows(1), last, 0, 2);
    check(&Window::of_rows(0), last, 0, 2);
}

#[test]
fn random_convolutions_match_the_reference() {
    let mut random = Random::new(99);
    for _ in 0..150 {
        let window = random.window();
        let [inputs, outputs, before, after] = [40, 70, 5, 5].map(|most| 1 + random.next() as usize % most);
        let part = Channels {
            inputs,
            in_stride: inputs + before + after,
            in_offset: before,
            outputs,
            out_stride: outputs + after,
            out_offset: after - 1,
        };
        let pad = random.next() as u8;
        check(&window, if before == 1 { part } else { dense(inputs, outputs) }, pad, 1);
    }
}

/// Sizes at which matrix tiles are full, and those just beside; several blocks; lines and images that end within a
/// block; planes of strided inputs.
#[test]
fn blocks_of_matrix_tiles_match_the_reference() {
    for (rows, depth, outputs) in
        [(31, 64, 32), (32, 63, 33), (33, 65, 48), (64, 128, 16), (97, 192, 80), (600, 20, 40), (1100, 3, 33)]
    {
        check(&Window::of_rows(rows), dense(depth, outputs), 0, 1);
    }
    let part =
        Channels { inputs: 70, in_stride: 75, in_offset: 4, outputs: 37, out_stride: 41, out_offset: 3 };
    check(&Window::of_rows(70), part, 0, 2);
    for (i, (inputs, outputs)) in [(64, 32), (16, 40), (3, 33), (40, 70)].into_iter().enumerate() {
        for window in [
            window(2, (14, 14), (3, 3), (1, 1), (1, 1), (1, 1)),
            window(3, (7, 7), (3, 3), (1, 1), (1, 1), (1, 1)),
            window(1, (17, 35), (3, 3), (2, 2), (1, 1), (1, 1)),
            window(2, (23, 21), (7, 7), (2, 2), (1, 1), (3, 3)),
            window(1, (15, 16), (3, 3), (1, 1), (2, 2), (2, 2)),
            window(1, (15, 16), (3, 3), (1, 1), (1, 1), (3, 3)),
            window(1, (13, 12), (5, 5), (1, 1), (1, 1), (0, 2)),
            window(1, (12, 13), (1, 5), (1, 1), (1, 1), (0, 2)),
            window(1, (12, 13), (3, 3), (3, 2), (2, 1), (2, 1)),
            window(2, (12, 13), (1, 1), (2, 2), (1, 1), (0, 0)),
            window(1, (20, 2), (3, 3), (1, 1), (1, 1), (1, 1)),
        ] {
            check(&window, dense(inputs, outputs), 77, 1 + i % 2);
            let wide = Channels { in_stride: inputs + 9, in_offset: 5, ..dense(inputs, outputs) };
            check(&window, wide, 200, 1);
        }
    }
    // More panels than meet a block at once, a kernel that is not the square it was packed for, and more lines than one
    // copy takes.
    check(&Window::of_rows(34), dense(4100, 170), 0, 1);
    check(&window(1, (30, 40), (1, 4), (1, 1), (1, 1), (0, 0)), dense(16, 33), 5, 1);
    check(&window(1, (70, 70), (3, 3), (1, 1), (1, 1), (1, 1)), dense(100, 3), 5, 1);
}

#[test]
fn products_out_of_range_saturate_alike() {
    let factors = [1e30, -1e30, f32::INFINITY, f32::NAN, 3e4, -3e4, 1e-30, 0.0];
    let outputs = 40;
    let (x, codes) = ([255u8, 0, 7, 255], vec![127i8; outputs * 2]);
    let bias: Vec<i32> = (0..outputs).map(|n| [0, i32::MAX, i32::MIN, -64_770, 5][n % 5]).collect();
    let multiplier: Vec<f32> = (0..outputs).map(|n| factors[n % 8]).collect();
    let requant = Requant {
        bias: &bias,
        multiplier: &multiplier,
        zero_point: 100,
        lo: 2,
        hi: 251,
        table: None,
        sum: None,
    };
    let other = Random::new(1).u8s(2 * outputs);
    let sum = Some(Sum { codes: &other, scales: ADDED.0, form: Some(ADDED.1) });
    let mut want = None;
    for isa in Isa::available() {
        let (mut y, mut sums) = (vec![0; 2 * outputs], vec![0; 2 * outputs]);
        let packed = PackedInt8::pack(isa, &codes, outputs, 1, 2);
        packed.matmul(&x, 2, IntOutput::U8(&mut y, &requant), 1);
        assert_eq!(&y, want.get_or_insert(y.clone()), "{isa:?}");
        packed.matmul(&x, 2, IntOutput::U8(&mut sums, &Requant { sum, ..requant }), 1);
        assert_eq!(sums, added(&y, &other), "{isa:?}");
    }
}

#[test]
#[cfg(target_arch = "x86_64")]
fn avx2_takes_the_form_that_its_weights_are_fast_in() {
    let Some(avx2) = Isa::named("avx2") else { return };
    let form = |most: i8| {
        let codes: Vec<i8> = Random::new(5).i8s(64 * 256).iter().map(|code| code % most).collect();
        PackedInt8::pack(avx2, &codes, 64, 1, 256).form()
    };
    assert_eq!(form(33), Form::Scheduled(Shares { paired: 1.0, single: 0.0, wide: 0.0 }));
    assert_eq!(form(127), Form::Pairs);
}

#[test]
fn two_threads_give_what_one_gives() {
    check(&window(2, (24, 25), (3, 3), (1, 1), (1, 1), (1, 1)), dense(40, 33), 131, 2);
    check(&Window::of_rows(1), dense(2000, 500), 0, 2);
}
