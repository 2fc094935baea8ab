//! Recipes as people write them.

use serde_json::json;

use super::*;

#[test]
fn nothing_means_the_defaults() {
    for json in [json!(null), json!({})] {
        assert_eq!(Recipe::parse(&json), Ok(Recipe::default()));
    }
    let full = serde_json::to_value(Recipe::default()).unwrap();
    assert_eq!(Recipe::parse(&full), Ok(Recipe::default()), "a recipe with every default reads back");
    assert_eq!(full["weights"], json!({"per_channel": true, "max_code": 127}));
}

#[test]
fn what_is_asked_is_kept() {
    let json = json!({"weights": {"per_channel": false, "max_code": "auto"}, "ranges": "minmax", "keep_float": ["/head/*"], "complete": true,
        "gate": {"max_drop": 0.01, "min_agreement": 0.98}});
    let recipe = Recipe::parse(&json).unwrap();
    assert_eq!(recipe.weights, WeightRecipe { per_channel: false, max_code: MaxCode::Auto });
    assert!(recipe.ranges == Ranges::Minmax && recipe.complete);
    assert!(recipe.keeps_float("/head/MatMul") && !recipe.keeps_float("/body/MatMul"));
    let gate = Gate { max_drop: Some(0.01), min_agreement: Some(0.98), ..Gate::default() };
    assert_eq!(recipe.gate, gate);
}

/// It is kept as text. The catalog gave 0.1984400427885629 back for it, which is the next real.
#[test]
fn a_recipe_that_is_kept_as_text_is_the_same_to_the_last_bit() {
    let recipe = Recipe::parse(&json!({"smooth": {"alpha": 0.19844004278856286}})).unwrap();
    let text = serde_json::to_string(&recipe).unwrap();
    assert!(text.contains("0.19844004278856286"), "{text}");
    assert_eq!(Recipe::parse(&serde_json::from_str(&text).unwrap()), Ok(recipe));
}

#[test]
fn every_scheme_is_known() {
    for (name, scheme) in [
        ("auto", Scheme::Auto),
        ("static", Scheme::Static),
        ("dynamic", Scheme::Dynamic),
        ("weight_only", Scheme::WeightOnly),
        ("float16", Scheme::Float16),
    ] {
        assert_eq!(Recipe::parse(&json!({"scheme": name})).unwrap().scheme, scheme);
    }
    let recipe = Recipe::parse(&json!({"sixteen_bit": ["/stft/*"]})).unwrap();
    assert!(recipe.has_sixteen_bits("/stft/Conv") && !recipe.has_sixteen_bits("/encoder/Conv"));
}

#[test]
fn channels_are_scaled_as_it_is_asked() {
    for (json, equalize, smooth) in [
        (json!({}), false, Smooth::Auto),
        (json!({"equalize": true}), true, Smooth::Auto),
        (json!({"smooth": "off"}), false, Smooth::Off),
        (json!({"smooth": {"alpha": 0.65}, "scheme": "weight_only"}), false, Smooth::Alpha(0.65)),
        (json!({"smooth": {"alpha": 0}}), false, Smooth::Alpha(0.0)),
    ] {
        let recipe = Recipe::parse(&json).unwrap();
        assert_eq!((recipe.equalize, recipe.smooth), (equalize, smooth), "{json}");
        let full = serde_json::to_value(&recipe).unwrap();
        assert_eq!(Recipe::parse(&full), Ok(recipe), "{full} reads back");
    }
}

#[test]
fn a_wrong_recipe_is_refused_with_its_field() {
    for (json, says) in [
        (json!([]), "expected an object"),
        (json!({"wieghts": {}}), "unknown field `wieghts`"),
        (json!({"weights": {"per_chanel": true}}), "`weights`: unknown field `per_chanel`"),
        (json!({"weights": {"per_channel": 1}}), "`weights`: invalid type"),
        (json!({"weights": {"max_code": 63}}), "max_code is 63, not \"auto\" or a number from 64 to 127"),
        (json!({"weights": {"max_code": "best"}}), "max_code is \"best\""),
        (json!({"weights": {"max_code": "auto"}}), "give a gate"),
        (json!({"target": "openvino", "scheme": "dynamic"}), "`target`: other targets than octet"),
        (json!({"target": "tpu"}), "`target`: unknown variant `tpu`"),
        (json!({"scheme": "dynamic", "sixteen_bit": ["a"]}), "`sixteen_bit`: only the static scheme"),
        (
            json!({"target": "tensorrt", "sixteen_bit": ["a"]}),
            "`sixteen_bit`: target tensorrt has activations of 8",
        ),
        (json!({"target": "tflite_rules", "sixteen_bit": ["a"]}), "`sixteen_bit`: target tflite_rules has"),
        (json!({"scheme": "magic"}), "`scheme`: unknown variant `magic`"),
        (json!({"ranges": {"percentile": 20}}), "percentile 20 is not above 50"),
        (json!({"ranges": "best"}), "`ranges`: \"best\" is not \"auto\", \"minmax\""),
        (json!({"equalize": 1}), "`equalize`: invalid type"),
        (json!({"scheme": "float16", "equalize": true}), "`equalize`: float16 has no codes"),
        (json!({"scheme": "float16", "smooth": {"alpha": 0.5}}), "`smooth`: float16 has no codes"),
        (json!({"smooth": {"alpha": 2}}), "`smooth`: {\"alpha\":2} is not \"off\""),
        (json!({"keep_float": "a"}), "`keep_float`: invalid type"),
        (json!({"complete": "all"}), "`complete`: invalid type"),
        (json!({"gate": {"max_drop": 1.5}}), "`gate.max_drop`: 1.5"),
        (json!({"gate": {"min_sqnr_db": 200}}), "200 is not between 0 and 100 dB"),
        (json!({"gate": {"metric": "top5"}}), "give max_drop"),
        (json!({"search": {"trials": 4}}), "give a gate"),
        (json!({"search": {"trials": 0.5}}), "`search`: {\"trials\":0.5} is not"),
    ] {
        let error = Recipe::parse(&json).unwrap_err().to_string();
        assert!(error.contains(says), "{json}: {error}");
    }
}

#[test]
fn a_star_stands_for_any_letters() {
    for (pattern, name, want) in [
        ("a", "a", true),
        ("a", "ab", false),
        ("a*", "ab", true),
        ("*b", "ab", true),
        ("*", "", true),
        ("a*b*c", "a1b2b3c", true),
        ("a*b*c", "a1c", false),
        ("ab*ba", "aba", false),
        ("/l/*/Conv", "/l/0/Conv", true),
        ("", "x", false),
    ] {
        assert_eq!(matches(pattern, name), want, "{pattern} {name}");
    }
}
