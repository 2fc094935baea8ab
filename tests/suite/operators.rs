//! `docs/OPERATORS.md` is what the program takes.

use octet::engine::onnx::import::OPSETS;
use octet::engine::onnx::operators::{self, Runs};

/// Operators that quantizing computes on codes, and how; the rules are in `engine::quant::plan`.
const INTEGERS: &[(&str, &str)] = &[
    ("Acos", "a table behind a convolution"),
    ("Acosh", "a table behind a convolution"),
    ("Add", "integers, between results of convolutions"),
    ("Asin", "a table behind a convolution"),
    ("Asinh", "a table behind a convolution"),
    ("Atan", "a table behind a convolution"),
    ("Atanh", "a table behind a convolution"),
    ("AveragePool", "integers, over one or two spatial axes"),
    ("Celu", "a table behind a convolution"),
    ("Clip", "part of the product before it"),
    ("Concat", "integers, of results of convolutions"),
    ("Conv", "integers, over one or two spatial axes; weights stored in codes over more"),
    ("ConvTranspose", "integers, where windows lie side by side"),
    ("Cosh", "a table behind a convolution"),
    ("DepthToSpace", "codes pass"),
    ("Elu", "a table behind a convolution"),
    ("Flatten", "codes pass"),
    ("GRU", "weights stored in codes"),
    ("Gather", "codes of a table"),
    ("Gelu", "a table behind a convolution"),
    ("Gemm", "integers"),
    ("GlobalAveragePool", "integers"),
    ("HardSigmoid", "part of the product before it, or a table"),
    ("HardSwish", "part of the product before it, or a table"),
    ("LSTM", "weights stored in codes"),
    ("LeakyRelu", "a table behind a convolution"),
    ("MatMul", "integers"),
    ("MaxPool", "codes pass"),
    ("Mish", "a table behind a convolution"),
    ("Mul", "integers, between results of convolutions"),
    ("RNN", "weights stored in codes"),
    ("Relu", "part of the product before it"),
    ("Reshape", "codes pass"),
    ("Resize", "codes pass, to the nearest"),
    ("Selu", "a table behind a convolution"),
    ("Shrink", "a table behind a convolution"),
    ("Sigmoid", "a table behind a convolution"),
    ("Sinh", "a table behind a convolution"),
    ("Slice", "codes pass"),
    ("Softsign", "a table behind a convolution"),
    ("SpaceToDepth", "codes pass"),
    ("Split", "codes pass"),
    ("Squeeze", "codes pass"),
    ("Swish", "a table behind a convolution"),
    ("Tan", "a table behind a convolution"),
    ("Tanh", "a table behind a convolution"),
    ("ThresholdedRelu", "a table behind a convolution"),
    ("Transpose", "codes pass"),
    ("Unsqueeze", "codes pass"),
];

fn table() -> String {
    let mut table = "| operator | domain | runs as | in an INT8 model |\n|---|---|---|---|\n".to_owned();
    for (domain, name, runs) in operators::all() {
        let domain = if domain.is_empty() { "ONNX" } else { domain };
        let runs = match runs {
            Runs::Kernel => "kernel of its own",
            Runs::Object => "one object",
        };
        let integer =
            INTEGERS.iter().find(|(n, _)| *n == name && domain == "ONNX").map_or("float", |(_, how)| how);
        table.push_str(&format!("| {name} | {domain} | {runs} | {integer} |\n"));
    }
    table.push_str(&format!(
        "\n{} operators. Opsets {} to {} of ONNX, opset 1 of other domains.\n",
        operators::all().len(),
        OPSETS.start(),
        OPSETS.end()
    ));
    table
}

#[test]
fn the_document_lists_every_operator() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/OPERATORS.md");
    let document = std::fs::read_to_string(path).unwrap();
    let (before, rest) = document.split_once("<!-- table -->\n").unwrap();
    let (now, after) = rest.split_once("<!-- end -->").unwrap();
    let table = table();
    if option_env!("UPDATE").is_some() {
        std::fs::write(path, format!("{before}<!-- table -->\n{table}<!-- end -->{after}")).unwrap();
    } else {
        assert_eq!(now, table, "run this test with UPDATE=1 to write docs/OPERATORS.md");
    }
}

#[test]
fn every_operator_that_has_integers_is_there() {
    for (name, _) in INTEGERS {
        assert!(operators::all().iter().any(|(domain, n, _)| domain.is_empty() && n == name), "{name}");
    }
}
