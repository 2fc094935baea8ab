//! Tests of [`winograd`](super::winograd): every result against the direct sum, to the bit.

use super::isa::Isa;
use super::testing::{ADDED, Channels, Random, added, dense, window};
use super::winograd::PackedWinograd;
use super::winograd_transform::{TAPS, Transform};
use super::{Dequant, IntOutput, Requant, Sum, Window, reference};

/// A 3x3 window with stride and dilation 1.
fn plain(batch: usize, input: (usize, usize), pad: (usize, usize)) -> Window {
    window(batch, input, (3, 3), (1, 1), (1, 1), pad)
}

/// All outputs of a convolution on every instruction set, against the reference.
fn check(window: &Window, channels: Channels, pad: u8, threads: usize) {
    let mut random = Random::new(channels.inputs as u64 * 1000 + channels.outputs as u64);
    let Channels { inputs, outputs, .. } = channels;
    let mut x = random.u8s(window.pixels() * channels.in_stride);
    let mut codes = random.i8s(outputs * TAPS * inputs);
    // The first row and the last column at their extremes.
    x.iter_mut().take(channels.in_stride).for_each(|x| *x = 255);
    codes[(outputs - 1) * TAPS * inputs..].fill(-128);
    check_codes(&x, &codes, window, channels, pad, threads);
}

fn check_codes(x: &[u8], codes: &[i8], window: &Window, channels: Channels, pad: u8, threads: usize) {
    let mut random = Random::new(codes.len() as u64);
    let Channels { inputs, in_stride, in_offset, outputs, out_stride, out_offset } = channels;
    let depth = TAPS * inputs;
    let bias: Vec<i32> = (0..outputs).map(|n| [random.next() as i32 % 20_000, i32::MIN][n % 9 / 8]).collect();
    let factor: Vec<f32> = (0..outputs)
        .map(|_| (random.next() % 999 + 1) as f32 * 1e-3 / (depth as f32).sqrt() / 90.0)
        .collect();
    let table: [u8; 256] = random.u8s(256).try_into().expect("256 codes");
    let acc = reference::conv_int8(x, in_stride, in_offset, codes, inputs, window, pad);
    let at = |i: usize| i / outputs * out_stride + out_offset + i % outputs;
    let other = random.u8s(window.rows() * out_stride);
    let of_outputs: Vec<u8> = (0..acc.len()).map(|i| other[at(i)]).collect();
    let transforms = Transform::ALL.into_iter().filter(|transform| transform.exact(codes, inputs));
    for (isa, transform) in
        Isa::available().into_iter().flat_map(|isa| transforms.clone().map(move |t| (isa, t)))
    {
        let name = format!("{isa:?} {transform:?} {window:?} {channels:?} pad {pad} threads {threads}");
        let packed = PackedWinograd::pack(isa, transform, codes, outputs, inputs);
        let sums: Vec<i32> = codes.chunks(depth).map(|c| c.iter().map(|&c| i32::from(c)).sum()).collect();
        assert_eq!(packed.column_sums(), sums);
        for (lo, hi, zero_point, table) in
            [(0, 255, 128, None), (3, 200, 0, Some(&table)), (0, 255, 255, None)]
        {
            let requant = Requant { bias: &bias, multiplier: &factor, zero_point, lo, hi, table, sum: None };
            let want = reference::requantize(&acc, &requant);
            let mut y = vec![77; window.rows() * out_stride];
            let out = IntOutput::U8(&mut y, &requant);
            packed.conv(x, in_stride, in_offset, window, pad, out, out_stride, out_offset, threads);
            for (i, &want) in want.iter().enumerate() {
                assert_eq!(y[at(i)], want, "{name} {i}");
            }
            let channels = out_offset..out_offset + outputs;
            let mut others = y.iter().enumerate().filter(|(i, _)| !channels.contains(&(i % out_stride)));
            assert!(others.all(|(_, &v)| v == 77), "{name}: other channels are left alone");
            for form in [Some(ADDED.1), None] {
                let sum = Some(Sum { codes: &other, scales: ADDED.0, form });
                let out = IntOutput::U8(&mut y, &Requant { sum, ..requant });
                packed.conv(x, in_stride, in_offset, window, pad, out, out_stride, out_offset, threads);
                for (i, &want) in added(&want, &of_outputs).iter().enumerate() {
                    assert_eq!(y[at(i)], want, "{name} {i} with a sum");
                }
            }
        }
        let mut y = vec![0; window.rows() * out_stride];
        let out = IntOutput::I32(&mut y, &bias);
        packed.conv(x, in_stride, in_offset, window, pad, out, out_stride, out_offset, threads);
        for (i, &want) in acc.iter().enumerate() {
            assert_eq!(y[at(i)], want.wrapping_add(bias[i % outputs]), "{name} {i} as sums");
        }
        let dequant = Dequant { bias: &bias, scale: &factor, then: None };
        let want = reference::dequantize_sums(&acc, &dequant);
        let mut y = vec![0.0; window.rows() * out_stride];
        let out = IntOutput::F32(&mut y, &dequant);
        packed.conv(x, in_stride, in_offset, window, pad, out, out_stride, out_offset, threads);
        for (i, &want) in want.iter().enumerate() {
            assert_eq!(y[at(i)].to_bits(), want.to_bits(), "{name} {i} as float");
        }
    }
}

#[test]
fn every_size_and_padding_matches_the_reference() {
    for (h, w) in (1..=7).flat_map(|h| (1..=7).map(move |w| (h, w))) {
        for pad in [(0, 0), (1, 1), (2, 2), (0, 2), (2, 1)] {
            if h + 2 * pad.0 >= 3 && w + 2 * pad.1 >= 3 {
                check(&plain(1 + (h + w) % 3, (h, w), pad), dense(16 + h, 16 + w), (37 * h * w) as u8, 1);
            }
        }
    }
}

#[test]
fn more_padding_at_the_end_matches_the_reference() {
    for (more_h, more_w) in [(1, 0), (0, 1), (1, 1), (2, 3)] {
        let window = plain(2, (6, 5), (1, 0));
        let window = Window { out_h: window.out_h + more_h, out_w: window.out_w + more_w, ..window };
        check(&window, dense(20, 24), 9, 1);
    }
}

#[test]
fn every_number_of_channels_matches_the_reference() {
    for inputs in 1..=50 {
        check(&plain(1, (5, 6), (1, 1)), dense(inputs, 1 + inputs * 7 % 40), 130, 1);
    }
    for (inputs, outputs) in [(64, 64), (70, 100), (256, 33), (300, 8)] {
        check(&plain(1, (9, 9), (1, 1)), dense(inputs, outputs), 255, 1);
    }
}

#[test]
fn parts_of_a_pixel_match_the_reference() {
    for inputs in [3, 16, 21] {
        let outputs = 2 * inputs - 1;
        let part = Channels {
            inputs,
            in_stride: inputs + 9,
            in_offset: 9,
            outputs,
            out_stride: outputs + 5,
            out_offset: 3,
        };
        for threads in [1, 2] {
            check(&plain(2, (8, 7), (1, 1)), part, 200, threads);
        }
    }
}

#[test]
fn parts_of_lines_and_of_columns_match_the_reference() {
    // Enough work for threads: lines of several odd images, then columns of few tiles.
    for threads in [2, 3, 5] {
        check(&plain(3, (15, 41), (1, 1)), dense(40, 40), 131, threads);
        check(&plain(1, (7, 7), (1, 1)), dense(128, 200), 131, threads);
        check(&plain(1, (3, 3), (0, 0)), dense(500, 250), 131, threads);
        check(&plain(1, (5, 90), (0, 0)), dense(64, 20), 131, threads);
    }
}

#[test]
fn random_convolutions_match_the_reference() {
    let mut random = Random::new(98);
    for _ in 0..80 {
        let [batch, h, w, inputs, outputs] =
            [3, 12, 12, 40, 50].map(|most| 1 + random.next() as usize % most);
        let pad = (random.next() as usize % 3, random.next() as usize % 3);
        if h + 2 * pad.0 >= 3 && w + 2 * pad.1 >= 3 {
            check(&plain(batch, (h, w), pad), dense(inputs, outputs), random.next() as u8, 1);
        }
    }
}

#[test]
fn the_largest_sums_are_exact() {
    // All codes of one sign, as many inputs as the transform takes.
    for (transform, bits) in [(Transform::F2, 29), (Transform::F4, 25)] {
        for code in [-128, 127] {
            let inputs = ((1 << bits) - 1) / 255 / (TAPS * i32::from(code).unsigned_abs() as usize);
            let codes = |inputs: usize| vec![code; 2 * TAPS * inputs];
            assert!(
                transform.exact(&codes(inputs), inputs) && !transform.exact(&codes(inputs + 1), inputs + 1)
            );
            let window = plain(1, (5, 6), (1, 1));
            let x = vec![255; window.pixels() * inputs];
            check_codes(&x, &codes(inputs), &window, dense(inputs, 2), 255, 1);
        }
    }
}
