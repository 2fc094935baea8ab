//! Why a layer hurts, and the line of a recipe that would help.

use serde_json::{Value, json};

use super::{Activation, Advice, Cause, LayerRow};
use crate::engine::quant::search::Sensitivity;
use crate::engine::quant::spread::Spread;
use crate::engine::quant::{MaxCode, Ranges, Recipe, Rounding};

/// Below this a layer is worth a look, in dB: 20 dB is where one decision in a hundred changes on 1000 classes.
const SUSPICIOUS_DB: f64 = 20.0;
/// Below this a layer that reads unlike channels is hurt by them, in dB.
const HURT_DB: f64 = 25.0;
/// Loss from which on a layer is named, in dB.
const LOSS_DB: f64 = 3.0;
/// Largest channel over the median one from which on channels are unlike.
const SPREAD: f64 = 30.0;
/// Below this the median channel has too few codes, in dB.
const CHANNEL_DB: f64 = 15.0;
/// Share of values beyond the range that is much.
const CLIPPED: f64 = 0.01;
/// Below this codes are few for a value or for weights, in dB.
const FEW_DB: f64 = 30.0;
/// Most layers that are named where none stands out.
const NOISIEST_MAX: usize = 3;
/// Most advice that is given.
const ADVICE_MAX: usize = 6;

/// What to try for the layers where noise enters, the worst first. A layer is named where its result is suspicious and
/// clearly noisier than the quietest layer before it, or where one scale serves channels that are very unlike and a
/// layer behind it suffers. `sensitivity` is what each layer costs alone, where that was measured.
pub fn advice(
    layers: &[LayerRow],
    activations: &[Activation],
    sensitivity: &[Sensitivity],
    recipe: &Recipe,
) -> Vec<Advice> {
    let mut found: Vec<(f64, Advice)> = Vec::new();
    let mut blamed: Vec<String> = Vec::new();
    for layer in layers {
        if let Some((loss, advice, readers)) = spread(layer, layers, recipe) {
            blamed.extend(readers);
            found.push((loss, advice));
        }
    }
    let mut quietest = f64::INFINITY;
    for layer in layers {
        let Some(noise) = &layer.noise else { continue };
        let first = quietest == f64::INFINITY;
        let loss = quietest.min(SUSPICIOUS_DB + 20.0) - noise.sqnr_db;
        quietest = quietest.min(noise.sqnr_db);
        let named = found.iter().any(|(_, a)| a.node == layer.node) || blamed.contains(&layer.node);
        if noise.sqnr_db >= SUSPICIOUS_DB || loss < LOSS_DB || named {
            continue;
        }
        let activation = activations.iter().find(|a| a.value == layer.value);
        let measured = sensitivity.iter().find(|s| s.node == layer.node);
        let seen = format!("{} drops to {:.1} dB", layer.op, noise.sqnr_db);
        found.push((loss, of_its_own(layer, &seen, FEW_DB, activation, measured, recipe, first)));
    }
    if found.is_empty() {
        found = noisiest(layers, activations, sensitivity, recipe);
    }
    found.sort_by(|a, b| b.0.total_cmp(&a.0));
    found.into_iter().take(ADVICE_MAX).map(|(_, advice)| advice).collect()
}

/// What to do about nodes that stay in float because eight bits do not hold what they read: `(node, why)`.
pub fn of_unheld(kept: &[(String, String)], recipe: &Recipe) -> Vec<Advice> {
    let advice = |(node, why): &(String, String)| {
        let mut remedies: Vec<(&str, Value)> = Vec::new();
        if !recipe.equalize {
            remedies.push(("channels that are made alike", json!({"equalize": true})));
        }
        remedies.extend(wide("more bits for what it reads", node, recipe));
        if remedies.is_empty() {
            remedies.push(("float, as it is", json!({"keep_float": [node]})));
        }
        Advice {
            node: node.clone(),
            cause: Cause::Unheld,
            finding: format!("it stays in float: {why}"),
            remedy: remedies[0].0.to_owned(),
            recipe: remedies[0].1.clone(),
            alternatives: remedies.into_iter().skip(1).map(|(_, recipe)| recipe).collect(),
        }
    };
    kept.iter().take(ADVICE_MAX).map(advice).collect()
}

/// Activations of 16 bits for a node, where the recipe could ask for them.
fn wide<'a>(remedy: &'a str, node: &str, recipe: &Recipe) -> Option<(&'a str, Value)> {
    recipe.takes_sixteen_bits().then(|| (remedy, json!({"sixteen_bit": [node]})))
}

/// Where no layer stands out and the end is noisy all the same: the layers that add most by themselves.
fn noisiest(
    layers: &[LayerRow],
    activations: &[Activation],
    sensitivity: &[Sensitivity],
    recipe: &Recipe,
) -> Vec<(f64, Advice)> {
    let last = layers.iter().rev().find_map(|l| l.noise.as_ref());
    let Some(end) = last.map(|n| n.sqnr_db).filter(|db| *db < HURT_DB) else { return Vec::new() };
    let advice = |layer: &LayerRow| {
        let activation = activations.iter().find(|a| a.value == layer.value);
        let measured = sensitivity.iter().find(|s| s.node == layer.node);
        let parts = match measured {
            Some(m) => [Some(m.weights_db), Some(m.activations_db)],
            None => [layer.weight_sqnr_db, activation.and_then(|a| a.sqnr_db)],
        };
        let adds: f64 = parts.iter().flatten().map(|db| 10f64.powf(-db / 10.0)).sum();
        let seen = format!("noise adds up to {end:.1} dB at the end, and of this layer comes much of it");
        let advice = of_its_own(layer, &seen, f64::INFINITY, activation, measured, recipe, false);
        (adds > 0.0).then_some((adds, advice))
    };
    let mut found: Vec<(f64, Advice)> = layers.iter().filter_map(advice).collect();
    found.sort_by(|a, b| b.0.total_cmp(&a.0));
    found.truncate(NOISIEST_MAX);
    found
}

/// The advice for a layer whose channels are too unlike, what is lost by it, and the layers that suffer.
fn spread(layer: &LayerRow, layers: &[LayerRow], recipe: &Recipe) -> Option<(f64, Advice, Vec<String>)> {
    let unlike = |spread: Option<Spread>, db: Option<f64>| {
        Some((spread.filter(|s| s.ratio >= SPREAD)?, db.filter(|db| *db < CHANNEL_DB)?))
    };
    let of_result = unlike(layer.channel_spread, layer.channel_db);
    let of_weights = unlike(layer.weight_spread, layer.weight_channel_db);
    let ((spread, db), what) = match (of_weights, of_result) {
        (Some(weights), _) => (weights, "the largest weight of output channel"),
        (None, Some(result)) => (result, "channel"),
        (None, None) => return None,
    };
    let readers: Vec<&LayerRow> = layers.iter().filter(|l| l.reads.contains(&layer.value)).collect();
    let noises = readers.iter().filter_map(|l| l.noise.as_ref()).map(|n| n.sqnr_db);
    // Where nobody reads its codes, what it does to the last layer counts.
    let after = noises.reduce(f64::min).or_else(|| layers.last()?.noise.as_ref().map(|n| n.sqnr_db))?;
    if after >= HURT_DB {
        return None;
    }
    let names: Vec<String> = readers.iter().map(|l| l.node.clone()).collect();
    let floats: Vec<&String> = std::iter::once(&layer.node).chain(&names).collect();
    let mut remedies: Vec<(&str, Value)> = Vec::new();
    if of_weights.is_some() {
        remedies.push(("one scale for each output channel", json!({"weights": {"per_channel": true}})));
    }
    if !recipe.equalize {
        remedies.push(("channels that are made alike", json!({"equalize": true})));
    }
    remedies.extend(wide("more bits for its result", &layer.node, recipe));
    remedies.push(("float for it and what reads it", json!({"keep_float": floats})));
    let behind = match &names[..] {
        [] => String::new(),
        [name, ..] => format!(", and `{name}` behind it drops to {after:.1} dB"),
    };
    let advice = Advice {
        node: layer.node.clone(),
        cause: Cause::ChannelSpread,
        finding: format!(
            "{what} {} of {} is {:.0} times the median one; one scale for all of them leaves the median channel {db:.1} dB{behind}",
            spread.largest, spread.channels, spread.ratio
        ),
        remedy: remedies[0].0.to_owned(),
        recipe: remedies[0].1.clone(),
        alternatives: remedies.into_iter().skip(1).map(|(_, recipe)| recipe).collect(),
    };
    Some((SUSPICIOUS_DB + 20.0 - after, advice, names))
}

/// The advice for a layer where noise enters by what it does itself. `few_db` is below what codes are few, `first` says
/// that no layer is before it.
fn of_its_own(
    layer: &LayerRow,
    seen: &str,
    few_db: f64,
    activation: Option<&Activation>,
    measured: Option<&Sensitivity>,
    recipe: &Recipe,
    first: bool,
) -> Advice {
    let weights = measured.map(|m| m.weights_db).or(layer.weight_sqnr_db);
    let range = measured.map(|m| m.activations_db).or_else(|| activation?.sqnr_db);
    let by_weights = match (weights, range) {
        (Some(w), Some(r)) => w <= r,
        (w, _) => w.is_some(),
    };
    let of_weights = format!("8 bits hold {:.1} dB of its weights", weights.unwrap_or_default());
    let bits = activation.map_or(8, |a| a.bits);
    let of_range = format!("{bits} bits hold {:.1} dB of its result", range.unwrap_or_default());
    let clipped = activation.map_or(0.0, |a| a.clipped);
    let few = |db: Option<f64>| db.is_some_and(|db| db < few_db);
    let keep = json!({"keep_float": [layer.node]});
    let wide = wide("more bits for its result", &layer.node, recipe);
    let (cause, why, mut remedies) = match () {
        () if layer.raised_channels > 0 && by_weights && few(weights) => (
            Cause::BiasOverflow,
            format!(
                "{} channels have biases that do not fit beside the products, so their weights have fewer codes; {of_weights}",
                layer.raised_channels
            ),
            if recipe.equalize {
                vec![]
            } else {
                vec![("channels that are made alike", json!({"equalize": true}))]
            },
        ),
        () if by_weights && few(weights) => (Cause::Weights, of_weights, better_weights(recipe)),
        () if clipped > CLIPPED && recipe.ranges != Ranges::Minmax => (
            Cause::Clipping,
            format!("{:.2} % of its values are beyond the chosen range; {of_range}", 100.0 * clipped),
            vec![("the whole range", json!({"ranges": "minmax"}))],
        ),
        () if few(range) => {
            let ranges = json!({"ranges": "mse"});
            let narrower = ("a range that leaves outliers out", ranges);
            let tail = activation.is_some_and(|a| a.method == "minmax");
            let mut remedies: Vec<_> = wide.clone().into_iter().collect();
            if tail {
                remedies.insert(0, narrower);
            }
            (Cause::ActivationRange, of_range, remedies)
        }
        () => {
            let parts = [weights.map(|_| of_weights), range.map(|_| of_range)];
            let parts: Vec<String> = parts.into_iter().flatten().collect();
            let own = if parts.is_empty() { String::new() } else { format!(" ({})", parts.join(", ")) };
            let from = match first {
                true => "noise comes in with the codes of what it reads",
                false => "noise of the layers before adds up",
            };
            (Cause::Gathered, format!("{from}{own}"), vec![])
        }
    };
    remedies.push(("float for it", keep));
    if cause == Cause::Clipping {
        remedies.extend(wide);
    }
    Advice {
        node: layer.node.clone(),
        cause,
        finding: format!("{seen}: {why}"),
        remedy: remedies[0].0.to_owned(),
        recipe: remedies[0].1.clone(),
        alternatives: remedies.into_iter().skip(1).map(|(_, recipe)| recipe).collect(),
    }
}

/// What a recipe leaves undone for weights.
fn better_weights(recipe: &Recipe) -> Vec<(&'static str, Value)> {
    let mut remedies = Vec::new();
    if !recipe.weights.per_channel {
        remedies.push(("one scale for each output channel", json!({"weights": {"per_channel": true}})));
    }
    if recipe.weights.max_code != MaxCode::Fixed(MaxCode::MOST) {
        remedies.push(("all of the weight codes", json!({"weights": {"max_code": MaxCode::MOST}})));
    }
    if recipe.rounding == Rounding::Nearest {
        remedies.push(("rounding for the result of the layer", json!({"rounding": "optimal"})));
    }
    remedies
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use super::*;
    use crate::engine::quant::Target;
    use crate::engine::quant::layer_noise::LayerNoise;

    fn row(node: &str, db: f64) -> LayerRow {
        LayerRow {
            node: node.to_owned(),
            op: "Conv",
            value: node.to_owned(),
            weight_shape: None,
            weight_max_code: Some(127),
            weight_sqnr_db: Some(15.0),
            weight_scale_spread: None,
            weight_spread: None,
            weight_channel_db: None,
            reads: Vec::new(),
            channel_spread: None,
            channel_db: None,
            raised_channels: 0,
            noise: Some(LayerNoise { sqnr_db: db, cosine: 1.0, ..LayerNoise::default() }),
        }
    }

    fn on(rows: &[LayerRow], recipe: &Value) -> Vec<Advice> {
        advice(rows, &[], &[], &Recipe::parse(recipe).unwrap())
    }

    #[test]
    fn what_eight_bits_do_not_hold_is_named() {
        let kept = [("conv".to_owned(), "8 bits do not hold `x`".to_owned())];
        let found = of_unheld(&kept, &Recipe::default());
        assert_eq!((found[0].node.as_str(), found[0].cause), ("conv", Cause::Unheld));
        assert_eq!(
            (&found[0].recipe, &found[0].alternatives[..]),
            (&json!({"equalize": true}), &[json!({"sixteen_bit": ["conv"]})][..])
        );
        let again = of_unheld(&kept, &Recipe { equalize: true, ..Recipe::default() });
        assert_eq!(again[0].recipe, json!({"sixteen_bit": ["conv"]}));
        assert_eq!(of_unheld(&vec![kept[0].clone(); 99], &Recipe::default()).len(), ADVICE_MAX);
    }

    #[test]
    fn advice_names_the_layers_where_noise_enters() {
        let rows = [row("a", 40.0), row("b", 15.0), row("c", 14.5), row("d", 5.0), row("e", 6.0)];
        let named: Vec<String> = on(&rows, &json!({})).into_iter().map(|a| a.node).collect();
        assert_eq!(named, ["b", "d"], "the largest loss first; what passes noise on is not to blame");
        assert_eq!(on(&[row("a", 30.0)], &json!({})), []);
        // Nowhere a step, and noisy in the end.
        let slow: Vec<LayerRow> = (0..9).map(|i| row(&i.to_string(), 38.0 - 2.0 * f64::from(i))).collect();
        let mut slow = slow;
        slow[4].weight_sqnr_db = Some(12.0);
        let found = on(&slow, &json!({"rounding": "nearest"}));
        assert_eq!(
            (found.len(), found[0].node.as_str(), found[0].cause),
            (3, "4", Cause::Weights),
            "{found:#?}"
        );
        assert!(found[0].finding.contains("22.0 dB at the end"), "{}", found[0].finding);
        assert_eq!(found[0].recipe, json!({"rounding": "optimal"}));
    }

    #[test]
    fn the_layer_before_is_blamed_for_channels_that_are_unlike() {
        let mut rows = [row("a", 40.0), row("b", 8.0), row("c", 8.0)];
        rows[0].channel_spread = Some(Spread { channels: 16, largest: 3, ratio: 1000.0 });
        rows[0].channel_db = Some(0.5);
        rows[1].reads = vec!["a".to_owned()];
        let found = on(&rows, &json!({}));
        assert_eq!(found.len(), 1, "{found:#?}");
        assert_eq!((found[0].node.as_str(), found[0].cause), ("a", Cause::ChannelSpread));
        assert!(found[0].finding.contains("channel 3 of 16 is 1000 times"), "{}", found[0].finding);
        assert_eq!(found[0].recipe, json!({"equalize": true}));
        assert_eq!(found[0].alternatives.last(), Some(&json!({"keep_float": ["a", "b"]})));
        rows[1].noise = Some(LayerNoise { sqnr_db: 35.0, ..LayerNoise::default() });
        assert_eq!(on(&rows[..2], &json!({})), [], "unlike, and nobody is hurt");
    }

    #[test]
    fn no_recipe_is_advised_that_would_be_refused() {
        for target in Target::ALL {
            for equalize in [false, true] {
                let recipe = Recipe { target, equalize, ..Recipe::default() };
                let advice = of_unheld(&[("conv".to_owned(), "too wide".to_owned())], &recipe).remove(0);
                let all: Vec<Value> = [advice.recipe].into_iter().chain(advice.alternatives).collect();
                let wide = all.contains(&json!({"sixteen_bit": ["conv"]}));
                assert_eq!(wide, recipe.takes_sixteen_bits(), "{target:?}");
                for mut part in all {
                    part["target"] = json!(target);
                    assert!(Recipe::parse(&part).is_ok(), "{part}");
                }
            }
        }
    }

    #[test]
    fn a_cause_comes_with_what_the_recipe_leaves_undone() {
        let activation = |sqnr_db, clipped, method| Activation {
            value: "a".to_owned(),
            bits: 8,
            method: Cow::Borrowed(method),
            min: 0.0,
            max: 1.0,
            lo: 0.0,
            hi: 1.0,
            scale: 0.1,
            zero_point: 0,
            clipped,
            zeros: 0.0,
            sqnr_db: Some(sqnr_db),
            histogram: Vec::new(),
        };
        let mut strong = row("a", 10.0);
        strong.weight_sqnr_db = Some(40.0);
        let mut raised = row("a", 10.0);
        raised.raised_channels = 2;
        for (layer, activation, cause, recipe) in [
            (row("a", 10.0), activation(40.0, 0.0, "mse"), Cause::Weights, json!({"keep_float": ["a"]})),
            (raised, activation(40.0, 0.0, "mse"), Cause::BiasOverflow, json!({"equalize": true})),
            (strong.clone(), activation(22.0, 0.02, "mse"), Cause::Clipping, json!({"ranges": "minmax"})),
            (
                strong.clone(),
                activation(22.0, 0.0, "minmax"),
                Cause::ActivationRange,
                json!({"ranges": "mse"}),
            ),
            (
                strong.clone(),
                activation(22.0, 0.0, "mse"),
                Cause::ActivationRange,
                json!({"sixteen_bit": ["a"]}),
            ),
            (strong, activation(45.0, 0.0, "mse"), Cause::Gathered, json!({"keep_float": ["a"]})),
        ] {
            let found = advice(&[layer], &[activation], &[], &Recipe::default());
            assert_eq!((found[0].cause, &found[0].recipe), (cause, &recipe), "{found:#?}");
            // It is the first layer: nothing is before it that could be blamed.
            assert!(!found[0].finding.contains("layers before"), "{found:#?}");
        }
    }
}
