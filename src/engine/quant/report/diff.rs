//! What is different between two reports or manifests: what was asked, what came out, and which layers changed most.
//! Works on JSON, so that reports of other versions can be compared: what one of them lacks is left out.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use super::html::{self, bytes, decibels, millis, percent};

/// Change, in dB or what is worth as much, from which on a layer is listed.
const CHANGED_DB: f64 = 0.01;
/// What another decision is worth, in dB: more than any change of figures.
const DECISION_DB: f64 = 1000.0;

/// Two reports compared, from `a` to `b`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Difference {
    /// What the two are.
    pub a: Side,
    /// The other.
    pub b: Side,
    /// Whether both were made from the same float model; nothing where one of them does not tell.
    pub same_model: Option<bool>,
    /// Whether both were judged on the same samples, labels and slices; nothing where one of them does not tell. On others
    /// figures of accuracy and noise say nothing of which is better.
    pub same_data: Option<bool>,
    /// Fields of the recipe that are not the same.
    pub recipe: Vec<Field>,
    /// Accuracy, size, time: all figures that both have.
    pub figures: Vec<Figure>,
    /// Layers, and values of no layer, that are not the same, the most changed first.
    pub layers: Vec<LayerChange>,
    /// Layers and values that are the same.
    pub layers_same: usize,
    /// Classes and slices whose INT8 accuracy is not the same, the largest loss first.
    pub groups: Vec<GroupChange>,
}

/// One of the two.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Side {
    /// Name of the model.
    pub model: Option<String>,
    /// Digest of the float model.
    pub model_sha256: Option<String>,
    /// Digest of the samples that it was judged on.
    pub data_sha256: Option<String>,
    /// What made it.
    pub engine: Option<String>,
}

/// A field of the recipe.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Field {
    /// Its path: `weights.max_code`.
    pub field: String,
    /// Its value in `a`.
    pub a: Value,
    /// Its value in `b`.
    pub b: Value,
}

/// A figure.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figure {
    /// Its path in the report: `evaluation.int8.value`.
    pub figure: &'static str,
    /// What it is, in words.
    pub name: &'static str,
    /// Its value in `a`.
    pub a: f64,
    /// Its value in `b`.
    pub b: f64,
    /// `b − a`.
    pub delta: f64,
    /// Whether that is to the better; nothing where it is neither.
    pub better: Option<bool>,
}

/// A layer, or a value of no layer, that is not the same.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LayerChange {
    /// Name of the node or of the value.
    pub node: String,
    /// How much changed, in dB or what is worth as much.
    pub change: f64,
    /// What it was.
    pub a: Option<State>,
    /// What it is.
    pub b: Option<State>,
    /// What changed: `decision`, `range`, `scale`, `max_code`, `noise`, `weights`.
    pub changed: Vec<&'static str>,
}

/// What became of a layer.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct State {
    /// `integer`, or `float` with the reason.
    pub decision: Option<String>,
    /// The reals that the codes of its result stand for.
    pub range: Option<[f64; 2]>,
    /// Real width of a code.
    pub scale: Option<f64>,
    /// Code of zero.
    pub zero_point: Option<i64>,
    /// Largest magnitude of its weight codes.
    pub max_code: Option<u64>,
    /// Signal to noise of its result, in dB.
    pub noise_db: Option<f64>,
    /// Signal to noise of its weight codes, in dB.
    pub weights_db: Option<f64>,
}

/// A class or a slice whose accuracy is not the same.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GroupChange {
    /// `class` or `slice`.
    pub kind: &'static str,
    /// Its name.
    pub name: String,
    /// INT8 in `a`.
    pub a: f64,
    /// INT8 in `b`.
    pub b: f64,
    /// `b − a`.
    pub delta: f64,
}

/// What a figure counts, and so how it is written.
#[derive(Clone, Copy)]
enum Unit {
    Share,
    Decibels,
    Cosine,
    Count,
    Bytes,
    Millis,
    Times,
}

/// The figures that are compared: path, words, what it counts, and whether more is better.
const FIGURES: [(&str, &str, Unit, Option<bool>); 11] = [
    ("evaluation.int8.value", "artifact, by the metric", Unit::Share, Some(true)),
    ("evaluation.float.value", "float model, by the metric", Unit::Share, None),
    ("evaluation.agreement.value", "agreement with float", Unit::Share, Some(true)),
    ("evaluation.sqnr_db", "output signal to noise", Unit::Decibels, Some(true)),
    ("evaluation.cosine", "output cosine", Unit::Cosine, Some(true)),
    ("evaluation.samples", "samples", Unit::Count, None),
    ("size.int8_bytes", "size of the artifact", Unit::Bytes, Some(false)),
    ("latency.int8_ms", "one run of the artifact", Unit::Millis, Some(false)),
    ("latency.float_ms", "one run of the float model", Unit::Millis, None),
    ("latency.speedup", "speedup", Unit::Times, Some(true)),
    ("coverage.integer", "integer nodes", Unit::Count, Some(true)),
];

/// Times differ by this share from one measurement to the next: less is neither better nor worse.
const TIME_NOISE: f64 = 0.05;

/// Compares two reports or manifests.
pub fn diff(a: &Value, b: &Value) -> Difference {
    let (left, right) = (side(a), side(b));
    let mut recipe = Vec::new();
    if let (Some(a), Some(b)) = (a.get("recipe"), b.get("recipe")) {
        fields("", a, b, &mut recipe);
    }
    let (states_a, states_b) = (states(a), states(b));
    let mut names: Vec<&String> = states_a.keys().chain(states_b.keys()).collect();
    names.sort();
    names.dedup();
    let mut layers: Vec<LayerChange> =
        names.iter().map(|name| change(name, states_a.get(*name), states_b.get(*name))).collect();
    let all = layers.len();
    layers.retain(|layer| layer.change >= CHANGED_DB || !layer.changed.is_empty());
    layers.sort_by(|a, b| b.change.total_cmp(&a.change).then_with(|| a.node.cmp(&b.node)));
    let mut groups =
        [("class", "classes"), ("slice", "slices")].map(|(kind, key)| grouped(kind, key, a, b)).concat();
    groups.sort_by(|a, b| a.delta.total_cmp(&b.delta).then_with(|| a.name.cmp(&b.name)));
    // What is not known is no difference.
    let same = |of: fn(&Side) -> Option<&String>| of(&left).zip(of(&right)).map(|(a, b)| a == b);
    let same_data = same(|side| side.data_sha256.as_ref());
    Difference {
        same_model: same(|side| side.model_sha256.as_ref()),
        same_data,
        a: left,
        b: right,
        recipe,
        figures: FIGURES.iter().filter_map(|figure| compared(figure, a, b, same_data)).collect(),
        layers_same: all - layers.len(),
        layers,
        groups,
    }
}

fn unit(path: &str) -> Unit {
    FIGURES.iter().find(|figure| figure.0 == path).map_or(Unit::Count, |figure| figure.2)
}

/// A figure, by its path, in its unit and with the digits that matter.
pub fn figure(path: &str, x: f64) -> String {
    // No zero with a sign.
    let x = if x == 0.0 { 0.0 } else { x };
    match unit(path) {
        Unit::Share => percent(x),
        Unit::Decibels => decibels(x),
        Unit::Cosine => format!("{x:.5}"),
        Unit::Count => html::grouped(x as u64),
        Unit::Bytes => bytes(x as u64),
        Unit::Millis => millis(x),
        Unit::Times => format!("{x:.2}×"),
    }
}

/// The change of a figure, with its sign; nothing where it shows none.
pub fn change_of(path: &str, delta: f64) -> Option<String> {
    let size = match unit(path) {
        Unit::Share => format!("{:.2} points", 100.0 * delta.abs()),
        Unit::Decibels => format!("{:.1} dB", delta.abs()),
        _ => figure(path, delta.abs()),
    };
    let none = !size.contains(|c| matches!(c, '1'..='9'));
    (!none).then(|| format!("{}{size}", if delta > 0.0 { '+' } else { '-' }))
}

/// What must be said of the data that two sides were judged on, where they are not the same.
pub const OTHER_DATA: &str = "evaluated on different data: accuracy, agreement and noise are not comparable";

fn at<'a>(value: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('.').try_fold(value, |value, key| value.get(key)).filter(|value| !value.is_null())
}

fn number(value: &Value, path: &str) -> Option<f64> {
    at(value, path)?.as_f64()
}

fn text(value: &Value, path: &str) -> Option<String> {
    at(value, path)?.as_str().map(str::to_owned)
}

fn side(report: &Value) -> Side {
    Side {
        model: text(report, "model.name"),
        model_sha256: text(report, "model.sha256"),
        // A manifest has the data of the evaluation, where there were any besides those of the calibration.
        data_sha256: text(report, "evaluated_on_sha256").or_else(|| text(report, "evaluation.sha256")),
        engine: text(report, "engine"),
    }
}

/// The fields of two recipes that are not the same.
fn fields(path: &str, a: &Value, b: &Value, found: &mut Vec<Field>) {
    if let (Value::Object(left), Value::Object(right)) = (a, b) {
        let mut keys: Vec<&String> = left.keys().chain(right.keys()).collect();
        keys.sort();
        keys.dedup();
        for key in keys {
            let inner = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            fields(
                &inner,
                left.get(key).unwrap_or(&Value::Null),
                right.get(key).unwrap_or(&Value::Null),
                found,
            );
        }
    } else if a != b {
        found.push(Field { field: path.to_owned(), a: a.clone(), b: b.clone() });
    }
}

fn compared(
    figure: &(&'static str, &'static str, Unit, Option<bool>),
    a: &Value,
    b: &Value,
    same_data: Option<bool>,
) -> Option<Figure> {
    let (path, name, unit, more) = *figure;
    let (a, b) = (number(a, path)?, number(b, path)?);
    let comparable = same_data != Some(false) || !path.starts_with("evaluation.");
    let measured = matches!(unit, Unit::Millis | Unit::Times);
    let same = a == b || measured && (b - a).abs() < TIME_NOISE * a.abs();
    let better = more.filter(|_| !same && comparable).map(|more| more == (b > a));
    Some(Figure { figure: path, name, a, b, delta: b - a, better })
}

/// What became of each node, and of the values of no node.
fn states(report: &Value) -> BTreeMap<String, State> {
    let rows = |key: &str| at(report, key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let mut states: BTreeMap<String, State> = BTreeMap::new();
    let mut makers: BTreeMap<String, String> = BTreeMap::new();
    for row in rows("layers") {
        let Some(node) = text(row, "node") else { continue };
        if let Some(value) = text(row, "value") {
            makers.insert(value, node.clone());
        }
        let state = State {
            decision: Some("integer".to_owned()),
            max_code: at(row, "weight_max_code").or_else(|| at(row, "max_code")).and_then(Value::as_u64),
            noise_db: number(row, "noise.sqnr_db"),
            weights_db: number(row, "weight_sqnr_db"),
            ..State::default()
        };
        states.insert(node, state);
    }
    for row in rows("float_nodes") {
        if let Some(node) = text(row, "node") {
            let reason = text(row, "reason").unwrap_or_default();
            states.insert(node, State { decision: Some(format!("float: {reason}")), ..State::default() });
        }
    }
    // A report lists values as `activations`, a manifest as `values`.
    for (row, key) in
        rows("activations").iter().map(|r| (r, "value")).chain(rows("values").iter().map(|r| (r, "name")))
    {
        let Some(value) = text(row, key) else { continue };
        let state = states.entry(makers.get(&value).cloned().unwrap_or(value)).or_default();
        state.range = number(row, "lo").zip(number(row, "hi")).map(|(lo, hi)| [lo, hi]);
        state.scale = number(row, "scale");
        state.zero_point = at(row, "zero_point").and_then(Value::as_i64);
    }
    states
}

fn change(node: &str, a: Option<&State>, b: Option<&State>) -> LayerChange {
    let mut changed = Vec::new();
    let mut worth = 0.0;
    let mut note = |what: &'static str, by: f64| {
        if by > 0.0 {
            changed.push(what);
            worth += by;
        }
    };
    let kind = |s: Option<&State>| {
        s.map(|s| s.decision.as_deref().unwrap_or("").split(':').next().unwrap_or("").to_owned())
    };
    if kind(a) != kind(b) {
        note("decision", DECISION_DB);
    }
    if let (Some(a), Some(b)) = (a, b) {
        let ratio = |a: f64, b: f64| if a > 0.0 && b > 0.0 { 20.0 * (b / a).log10().abs() } else { 0.0 };
        let both = |a: Option<f64>, b: Option<f64>, by: &dyn Fn(f64, f64) -> f64| {
            a.zip(b).map_or(0.0, |(a, b)| by(a, b))
        };
        let shift = |a: f64, b: f64| (b - a).abs();
        note("scale", both(a.scale, b.scale, &ratio));
        if let (Some(x), Some(y), Some(scale)) = (a.range, b.range, a.scale) {
            // An end that moved by a code is worth what it is of the range.
            let moved = (x[0] - y[0]).abs().max((x[1] - y[1]).abs()) / (255.0 * scale).max(f64::MIN_POSITIVE);
            note("range", if moved > 1e-6 { 20.0 * moved } else { 0.0 });
        }
        note("max_code", both(a.max_code.map(|c| c as f64), b.max_code.map(|c| c as f64), &ratio));
        note("weights", both(a.weights_db, b.weights_db, &shift));
        note("noise", both(a.noise_db, b.noise_db, &shift));
    }
    LayerChange { node: node.to_owned(), change: worth, a: a.cloned(), b: b.cloned(), changed }
}

fn grouped(kind: &'static str, key: &str, a: &Value, b: &Value) -> Vec<GroupChange> {
    let of = |report: &Value| -> BTreeMap<String, f64> {
        let rows = at(report, &format!("evaluation.{key}")).and_then(Value::as_array);
        let row = |row: &Value| Some((text(row, "name")?, number(row, "int8.value")?));
        rows.map_or_else(BTreeMap::new, |rows| rows.iter().filter_map(row).collect())
    };
    let (left, right) = (of(a), of(b));
    let both = left.into_iter().filter_map(|(name, a)| Some((a, *right.get(&name)?, name)));
    let changed = both.filter(|(a, b, _)| a != b);
    changed.map(|(a, b, name)| GroupChange { kind, name, a, b, delta: b - a }).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn report() -> Value {
        json!({
            "engine": "octet 1", "model": { "name": "m", "sha256": "ab" },
            "recipe": { "ranges": "mse", "weights": { "per_channel": true, "max_code": 127 } },
            "evaluation": {
                "int8": { "value": 0.9 }, "sqnr_db": 30.0,
                "classes": [{ "name": "0", "int8": { "value": 0.9 } }, { "name": "1", "int8": { "value": 0.8 } }],
            },
            "size": { "int8_bytes": 1000 },
            "layers": [
                { "node": "a", "value": "va", "weight_max_code": 127, "noise": { "sqnr_db": 40.0 } },
                { "node": "b", "value": "vb", "noise": { "sqnr_db": 30.0 } },
            ],
            "float_nodes": [{ "node": "c", "reason": "kept by the recipe" }],
            "activations": [
                { "value": "x", "lo": -1.0, "hi": 1.0, "scale": 0.01, "zero_point": 128 },
                { "value": "va", "lo": 0.0, "hi": 2.0, "scale": 0.01, "zero_point": 0 },
            ],
        })
    }

    #[test]
    fn a_report_is_no_different_from_itself() {
        let same = diff(&report(), &report());
        assert!(
            same.same_model == Some(true)
                && same.recipe.is_empty()
                && same.layers.is_empty()
                && same.groups.is_empty()
        );
        assert_eq!(same.layers_same, 4);
        assert!(same.figures.iter().all(|f| f.delta == 0.0 && f.better.is_none()));
    }

    #[test]
    fn what_changed_most_comes_first() {
        let mut other = report();
        other["recipe"]["weights"]["max_code"] = json!(64);
        other["recipe"]["equalize"] = json!(true);
        other["layers"] = json!([
            { "node": "a", "value": "va", "weight_max_code": 64, "noise": { "sqnr_db": 37.0 } },
            { "node": "c", "value": "vc" },
        ]);
        other["float_nodes"] = json!([{ "node": "b", "reason": "kept by the recipe" }]);
        other["activations"][0]["scale"] = json!(0.02);
        other["evaluation"]["int8"]["value"] = json!(0.85);
        other["evaluation"]["classes"][1]["int8"]["value"] = json!(0.7);
        other["size"]["int8_bytes"] = json!(900);
        let found = diff(&report(), &other);
        let named: Vec<(&str, &[&str])> =
            found.layers.iter().map(|l| (l.node.as_str(), &l.changed[..])).collect();
        assert_eq!(
            named,
            [
                ("b", &["decision"][..]),
                ("c", &["decision"]),
                ("a", &["max_code", "noise"]),
                ("x", &["scale"]),
            ]
        );
        let fields: Vec<&str> = found.recipe.iter().map(|f| f.field.as_str()).collect();
        assert_eq!(fields, ["equalize", "weights.max_code"]);
        let better: Vec<(&str, Option<bool>)> = found.figures.iter().map(|f| (f.figure, f.better)).collect();
        assert!(better.contains(&("evaluation.int8.value", Some(false))), "{better:?}");
        assert!(better.contains(&("size.int8_bytes", Some(true))), "{better:?}");
        assert_eq!((found.groups.len(), found.groups[0].name.as_str()), (1, "1"));
    }

    /// "0.9080 -> 0.1120" in red under a green "same float model": the labels of the second were others.
    #[test]
    fn figures_on_other_data_are_not_judged_and_what_is_unknown_is_not_different() {
        let on = |data: Value, model: Value, accuracy: f64| {
            let mut report = report();
            report["evaluated_on_sha256"] = data;
            report["model"]["sha256"] = model;
            report["evaluation"]["int8"]["value"] = json!(accuracy);
            report["size"]["int8_bytes"] = json!((1000.0 * accuracy) as u64);
            report
        };
        for (data, model, same_data, same_model, better) in [
            (json!("11"), json!("ab"), Some(true), Some(true), Some(false)),
            (json!("22"), json!("cd"), Some(false), Some(false), None),
            (json!(null), json!(null), None, None, Some(false)),
        ] {
            let found = diff(&on(json!("11"), json!("ab"), 0.9), &on(data, model, 0.1));
            assert_eq!((found.same_data, found.same_model), (same_data, same_model));
            let figure = |name: &str| found.figures.iter().find(|f| f.figure == name).unwrap().better;
            assert_eq!(figure("evaluation.int8.value"), better);
            assert_eq!(figure("size.int8_bytes"), Some(true), "bytes are bytes on any data");
        }
        let manifest = |data: &str| json!({ "evaluation": { "sha256": data, "samples": 5 } });
        assert_eq!(diff(&manifest("1"), &manifest("2")).same_data, Some(false));
    }

    #[test]
    fn figures_have_the_digits_that_matter() {
        for (path, x, want, change) in [
            ("evaluation.samples", 1500.0, "1\u{202f}500", Some("+1\u{202f}500")),
            ("size.int8_bytes", 125_285.0, "125 kB", Some("+125 kB")),
            ("evaluation.sqnr_db", -0.0, "0.0 dB", None),
            ("evaluation.sqnr_db", -31.26, "-31.3 dB", Some("-31.3 dB")),
            ("evaluation.cosine", 0.000_001, "0.00000", None),
            ("evaluation.int8.value", 0.908, "90.80 %", Some("+90.80 points")),
            ("latency.int8_ms", 0.0813, "81 µs", Some("+81 µs")),
            ("latency.speedup", -0.25, "-0.25×", Some("-0.25×")),
        ] {
            assert_eq!((figure(path, x).as_str(), change_of(path, x).as_deref()), (want, change), "{path}");
        }
        let run = |ms: f64| json!({ "latency": { "int8_ms": ms } });
        for (after, better) in [(0.0645, None), (0.08, Some(false)), (0.05, Some(true))] {
            assert_eq!(diff(&run(0.0643), &run(after)).figures[0].better, better, "{after} ms");
        }
    }

    #[test]
    fn manifests_and_what_is_no_report_are_compared_as_far_as_they_go() {
        let manifest = |scale: f64, code: u64| json!({ "values": [{ "name": "x", "scale": scale, "zero_point": 0 }], "layers": [{ "node": "a", "max_code": code }] });
        let found = diff(&manifest(0.1, 127), &manifest(0.2, 100));
        assert_eq!(found.layers.iter().map(|l| l.node.as_str()).collect::<Vec<_>>(), ["x", "a"]);
        for odd in [json!(null), json!([1]), json!({"layers": 7, "recipe": 3, "evaluation": []})] {
            assert_eq!(diff(&odd, &odd).layers, []);
        }
    }
}
