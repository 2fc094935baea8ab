//! Whether inputs are normalized as the model expects: by the statistics that a BatchNormalization behind the first
//! convolution has kept of the training, by the size of what the first layer would make, and by what is usual.

use super::samples::number;
use super::survey::{Input, Layout, Survey};
use super::{Check, Severity};
use crate::engine::graph::op::Op;
use crate::engine::graph::{Graph, Node, ValueId};
use crate::engine::tensor::{DType, Tensor};

/// Distance from the statistics of the training that is worth a warning, in their standard deviations.
const MISFIT: f64 = 0.5;
/// Part of that distance that another mean of the inputs must explain.
const EXPLAINED: f64 = 0.6;
/// Difference of means that is worth a warning, in standard deviations of the inputs.
const MEAN_SHIFT: f64 = 0.3;
/// Results of a first layer beyond which trained networks do not go.
const LARGE: f64 = 30.0;
/// Part of the biases below which inputs have no say.
const SMALL: f64 = 0.02;

/// What the first layer that reads an input does with constants, and what was behind it in training.
#[derive(Clone, Debug)]
pub struct FirstLayer {
    /// Name of the input.
    pub input: String,
    /// Name of the layer.
    pub node: String,
    /// For each output channel the sum of its weights for each input channel.
    sums: Vec<Vec<f64>>,
    /// For each output channel the sum of the squares of its weights.
    squares: Vec<f64>,
    /// For each output channel.
    bias: Vec<f64>,
    /// What a BatchNormalization saw of it in training.
    trained: Option<Trained>,
}

/// Running statistics of a BatchNormalization.
#[derive(Clone, Debug)]
struct Trained {
    node: String,
    mean: Vec<f64>,
    std: Vec<f64>,
}

/// The first layers of a graph whose BatchNormalizations are still there: before it is simplified.
pub fn first_layers(graph: &Graph) -> Vec<FirstLayer> {
    let readers = graph.consumers();
    graph.inputs.iter().filter_map(|&input| first_layer(graph, &readers, input)).collect()
}

fn first_layer(graph: &Graph, readers: &[Vec<usize>], input: ValueId) -> Option<FirstLayer> {
    let mut value = input;
    let node = loop {
        let [reader] = readers[value.0 as usize][..] else { return None };
        let node = &graph.nodes[reader];
        match node.op {
            // A pad holds zeros, and its rim is small.
            Op::Identity | Op::Cast { .. } | Op::Pad { .. } | Op::Transpose { .. } => value = node.outputs[0],
            Op::Conv { groups: 1, .. } if node.input(0) == Some(value) => break node,
            _ => return None,
        }
    };
    let weights = reals(graph, node.input(1))?;
    let [outs, ins, ..] = *weights.shape() else { return None };
    let bias = match node.input(2) {
        Some(bias) => reals(graph, Some(bias))?.to_f64(),
        None => vec![0.0; outs],
    };
    let flat = weights.to_f64();
    let plane = flat.len() / (outs * ins).max(1);
    if plane == 0 || bias.len() != outs {
        return None;
    }
    let rows = || flat.chunks_exact(ins * plane);
    let trained = match readers[node.outputs[0].0 as usize][..] {
        [reader] => trained(graph, &graph.nodes[reader], outs),
        _ => None,
    };
    Some(FirstLayer {
        input: graph.value(input).name.clone(),
        node: node.name.clone(),
        sums: rows().map(|row| row.chunks_exact(plane).map(|w| w.iter().sum()).collect()).collect(),
        squares: rows().map(|row| row.iter().map(|w| w * w).sum()).collect(),
        bias,
        trained,
    })
}

fn trained(graph: &Graph, node: &Node, channels: usize) -> Option<Trained> {
    let Op::BatchNorm { epsilon } = node.op else { return None };
    let (mean, variance) = (reals(graph, node.input(3))?.to_f64(), reals(graph, node.input(4))?.to_f64());
    let std: Vec<f64> = variance.iter().map(|v| (v + f64::from(epsilon)).max(0.0).sqrt()).collect();
    let whole = mean.len() == channels && std.len() == channels && std.iter().all(|s| *s > 0.0);
    whole.then(|| Trained { node: node.name.clone(), mean, std })
}

fn reals(graph: &Graph, id: Option<ValueId>) -> Option<&Tensor> {
    graph.constant(id?).map(|tensor| &**tensor).filter(|tensor| tensor.dtype() == DType::F32)
}

/// What does not fit, input by input. `which` is `calibration` or `evaluation`.
pub fn checks(layers: &[FirstLayer], survey: &Survey, which: &str) -> Vec<Check> {
    let one = |input: &Input| {
        let layer = layers.iter().find(|l| l.input == input.name && l.sums[0].len() == input.channels.len());
        match layer {
            Some(layer) if layer.trained.is_some() => against_training(layer, input, which),
            Some(layer) => by_size(layer, input, which).or_else(|| unusual(input, which)),
            None => unusual(input, which),
        }
    };
    survey.inputs.iter().filter_map(one).collect()
}

/// The result of the first layer in the mean, against what its BatchNormalization saw in training.
///
/// The mean of a result is `Σ sums[k] · mean[k] + bias`, but for the rim that padding makes. Where it is far from the
/// running mean, the means of the inputs that fit best are sought by least squares.
fn against_training(layer: &FirstLayer, input: &Input, which: &str) -> Option<Check> {
    let trained = layer.trained.as_ref()?;
    let means: Vec<f64> = input.channels.iter().map(|c| c.mean).collect();
    let rows: Vec<(Vec<f64>, f64)> = (0..layer.sums.len())
        .map(|c| {
            let std = trained.std[c];
            let expected: f64 =
                layer.sums[c].iter().zip(&means).map(|(s, m)| s * m).sum::<f64>() + layer.bias[c];
            (layer.sums[c].iter().map(|s| s / std).collect(), (trained.mean[c] - expected) / std)
        })
        .collect();
    let rms = |by: &[f64]| {
        let rest = |(row, z): &(Vec<f64>, f64)| z - row.iter().zip(by).map(|(r, d)| r * d).sum::<f64>();
        (rows.iter().map(|row| rest(row).powi(2)).sum::<f64>() / rows.len() as f64).sqrt()
    };
    let by = least_squares(&rows, means.len());
    let (before, after) = (rms(&vec![0.0; means.len()]), rms(&by));
    let shift = |k: usize| by[k].abs() / input.channels[k].std.max(f64::MIN_POSITIVE);
    let worst = (0..means.len()).max_by(|&a, &b| shift(a).total_cmp(&shift(b)))?;
    if before < MISFIT || after > (1.0 - EXPLAINED) * before || shift(worst) < MEAN_SHIFT {
        return None;
    }
    let list = |values: Vec<f64>| values.iter().map(|&v| number(v)).collect::<Vec<_>>().join(", ");
    let wanted: Vec<f64> = means.iter().zip(&by).map(|(m, d)| m + d).collect();
    let range = range(input);
    Some(Check::new(
        "normalization",
        Severity::Warning,
        format!(
            "{which} data, input `{}`: the mean is {} (values {range}), but `{}` behind the first convolution `{}` was trained on inputs with a mean of about {}; its results are off by {:.1} standard deviations",
            input.name,
            list(means.clone()),
            trained.node,
            layer.node,
            list(wanted),
            before
        ),
        "Normalize the samples as in training (mean and scale). Float and INT8 suffer alike: the data are at fault, not the quantization.",
    ))
}

/// Least squares by the normal equations, with a little ridge so that channels without weights stay where they are.
fn least_squares(rows: &[(Vec<f64>, f64)], unknowns: usize) -> Vec<f64> {
    let mut system = vec![vec![0f64; unknowns + 1]; unknowns];
    for (row, z) in rows {
        for i in 0..unknowns {
            for j in 0..unknowns {
                system[i][j] += row[i] * row[j];
            }
            system[i][unknowns] += row[i] * z;
        }
    }
    let trace: f64 = (0..unknowns).map(|i| system[i][i]).sum();
    for (i, equation) in system.iter_mut().enumerate() {
        equation[i] += 1e-6 * trace / unknowns as f64 + f64::MIN_POSITIVE;
    }
    // Gauss-Jordan: the matrix is symmetric and positive, so no pivot vanishes.
    for i in 0..unknowns {
        let pivot = system[i].clone();
        for (j, equation) in system.iter_mut().enumerate() {
            if i != j {
                let factor = equation[i] / pivot[i];
                equation.iter_mut().zip(&pivot).for_each(|(e, p)| *e -= factor * p);
            }
        }
    }
    (0..unknowns).map(|i| system[i][unknowns] / system[i][i]).collect()
}

/// The size of the results of a first layer without statistics of its own.
fn by_size(layer: &FirstLayer, input: &Input, which: &str) -> Option<Check> {
    let channels = input.channels.len() as f64;
    let square = input.channels.iter().map(|c| c.std * c.std + c.mean * c.mean).sum::<f64>() / channels;
    let rms = |values: &[f64]| (values.iter().sum::<f64>() / values.len().max(1) as f64).sqrt();
    let made = rms(&layer.squares.iter().map(|w| w * square).collect::<Vec<_>>());
    let biases = rms(&layer.bias.iter().map(|b| b * b).collect::<Vec<_>>());
    let (lo, hi) = ends(input);
    let bytes = lo >= 0.0 && hi > 50.0 && hi <= 255.0;
    let says = |text: String, remedy: &str| {
        let text = format!("{which} data, input `{}`: values {}; {text}", input.name, range(input));
        Some(Check::new("normalization", Severity::Warning, text, remedy))
    };
    if bytes && made > LARGE && made > 10.0 * biases {
        return says(
            format!(
                "`{}` makes values of about {} of them, where trained layers stay below ten or so",
                layer.node,
                number(made)
            ),
            "These look like bytes. Divide by 255 and normalize as in training: `NAME_u8`, `NAME_mean` and `NAME_std` in the file do it.",
        );
    }
    if (0.0..=1.0).contains(&lo) && hi <= 1.0 && made < SMALL * biases {
        return says(
            format!(
                "`{}` makes values of about {} of them, against biases of {}: they have no say",
                layer.node,
                number(made),
                number(biases)
            ),
            "The model may expect bytes, 0 to 255: hand in the values before they were divided.",
        );
    }
    None
}

/// Pictures whose values are none of the usual.
fn unusual(input: &Input, which: &str) -> Option<Check> {
    if !matches!(input.layout, Layout::Image | Layout::ImageChannelsLast) {
        return None;
    }
    let (lo, hi) = ends(input);
    let n = input.channels.len() as f64;
    let mean = input.channels.iter().map(|c| c.mean).sum::<f64>() / n;
    let std = (input.channels.iter().map(|c| c.std * c.std).sum::<f64>() / n).sqrt();
    let unit = lo >= -0.001 && hi <= 1.001;
    let both = lo >= -1.001 && hi <= 1.001;
    let bytes = hi - lo > 50.0 && hi - lo < 256.5;
    let standard = mean.abs() < 0.5 * std && (0.4..2.5).contains(&std);
    if hi <= lo || unit || both || bytes || standard {
        return None;
    }
    Some(Check::new(
        "normalization",
        Severity::Note,
        format!(
            "{which} data, input `{}`: values {} with mean {} and standard deviation {} are none of the usual (0 to 1, −1 to 1, bytes, or mean 0 and deviation 1); of bytes they would be made by (x / 255 − {}) / {}",
            input.name,
            range(input),
            number(mean),
            number(std),
            number(-lo / (hi - lo)),
            number(1.0 / (hi - lo))
        ),
        "Compare mean and scale with those of the training.",
    ))
}

fn ends(input: &Input) -> (f64, f64) {
    let least = |a: f64, c: &super::survey::Channel| a.min(c.min);
    let most = |a: f64, c: &super::survey::Channel| a.max(c.max);
    (input.channels.iter().fold(f64::INFINITY, least), input.channels.iter().fold(f64::NEG_INFINITY, most))
}

fn range(input: &Input) -> String {
    let (lo, hi) = ends(input);
    format!("{} to {}", number(lo), number(hi))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A first layer of these kernels over one channel.
    fn layer(kernels: &[[f64; 4]], bias: f64, trained: Option<(Vec<f64>, f64)>) -> FirstLayer {
        FirstLayer {
            input: "x".to_owned(),
            node: "conv".to_owned(),
            sums: kernels.iter().map(|k| vec![k.iter().sum()]).collect(),
            squares: kernels.iter().map(|k| k.iter().map(|w| w * w).sum()).collect(),
            bias: vec![bias; kernels.len()],
            trained: trained.map(|(mean, std)| Trained {
                node: "bn".to_owned(),
                std: vec![std; mean.len()],
                mean,
            }),
        }
    }

    fn survey(scale: f32, shift: f32) -> Survey {
        // Values from 0 to 1 with a mean of 0.5, before they are scaled.
        let sample = |n: usize| (0..36).map(|i| ((n * 5 + i) % 36) as f32 / 35.0 * scale + shift).collect();
        Survey::of_samples(&[1, 6, 6], &(0..16).map(sample).collect::<Vec<_>>(), 4)
    }

    #[test]
    fn running_means_tell_the_mean_of_the_training() {
        let kernels = [[0.5, 0.5, 0.5, 0.5], [1.0, -1.0, 1.0, -1.0], [-0.3, -0.2, 0.1, -0.6]];
        // Trained on a mean of 0.25.
        let means = kernels.iter().map(|k| k.iter().sum::<f64>() * 0.25).collect();
        let layers = [layer(&kernels, 0.0, Some((means, 0.4)))];
        for (scale, shift, want) in
            [(1.0, -0.25, None), (1.0, 0.75, Some("about 0.25")), (255.0, 0.0, Some("about 0.25"))]
        {
            let found = checks(&layers, &survey(scale, shift), "calibration");
            match want {
                None => assert_eq!(found, []),
                Some(says) => {
                    assert!(found[0].text.contains(says) && found[0].text.contains("`bn`"), "{found:?}")
                }
            }
        }
    }

    #[test]
    fn without_running_means_the_size_of_results_and_what_is_usual_count() {
        let ones = layer(&[[0.5, -0.5, 0.5, -0.5]], 0.1, None);
        let tiny = layer(&[[0.002, -0.002, 0.001, 0.001]], 1.0, None);
        for (layer, scale, shift, says) in [
            (&ones, 1.0, 0.0, None),
            (&ones, 2.0, -1.0, None),
            (&ones, 3.4, -1.7, None),
            (&ones, 255.0, 0.0, Some("look like bytes")),
            (&tiny, 1.0, 0.0, Some("expect bytes")),
            (&tiny, 255.0, 0.0, None),
            (&ones, 3.0, 0.5, Some("none of the usual")),
        ] {
            let found = checks(std::slice::from_ref(layer), &survey(scale, shift), "calibration");
            match says {
                None => assert_eq!(found, [], "{scale} {shift}"),
                Some(says) => {
                    let all = format!("{} {}", found[0].text, found[0].remedy);
                    assert!(all.contains(says), "{scale} {shift}: {all}");
                }
            }
        }
    }

    #[test]
    fn least_squares_finds_what_explains_the_rows() {
        let rows: Vec<(Vec<f64>, f64)> = [(1.0, 0.0), (0.5, 2.0), (-1.0, 1.0), (3.0, -1.0)]
            .map(|(a, b)| (vec![a, b], 2.0 * a - 0.5 * b))
            .to_vec();
        let found = least_squares(&rows, 2);
        assert!((found[0] - 2.0).abs() < 1e-3 && (found[1] + 0.5).abs() < 1e-3, "{found:?}");
        assert_eq!(
            least_squares(&[(vec![0.0], 3.0)], 1),
            [0.0],
            "weights that sum to zero tell nothing of means"
        );
    }
}
