//! A run that is warm allocates nothing: quantized models of every kind, on every instruction set of this processor.

use std::path::Path;

use octet::engine::exec::session::Session;
use octet::engine::exec::{Memory, Options};
use octet::engine::kernels::isa::Isa;
use octet::engine::onnx::import;
use octet::engine::pipeline::{self, Named, Request};
use octet::engine::tensor::{DType, Tensor};

use crate::support::{Silent, memory};

#[test]
fn a_warm_run_allocates_nothing() {
    for name in ["fm_lenet", "fm_mlp", "fm_mbv2", "fm_vit"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name);
        let (model, calibration) = (folder.join("model.onnx"), folder.join("calib.npz"));
        let request = Request {
            model: &model,
            calibration: Some(&calibration),
            statistics: None,
            evaluation: None,
            recipe: &serde_json::Value::Null,
            threads: 1,
            named: Named::default(),
            beside: false,
        };
        let artifact = pipeline::job::quantize(&request, &Silent).expect(name).artifact;
        for (isa, memory) in
            Isa::available().into_iter().flat_map(|i| [(i, Memory::Fast), (i, Memory::Small)])
        {
            let options = Options { isa, memory, ..Options::default() };
            let session = Session::new(import::import(&artifact).expect(name), options).expect(name);
            for batch in [1, 4] {
                let port = &session.inputs()[0];
                let shape = port.shape(|_| Some(batch)).expect("every dimension has a length");
                let input = Tensor::zeros(DType::F32, &shape);
                let mut outputs = session.run(&[(&port.name, &input)]).expect(name);
                let mut runner = session.runner(&[(&port.name, &input)]).expect(name);
                for _ in 0..2 {
                    runner.run(&[&input], &mut outputs).expect(name);
                }
                let before = memory::allocations();
                runner.run(&[&input], &mut outputs).expect(name);
                let made = memory::allocations() - before;
                assert_eq!(made, 0, "{name} on {} in batches of {batch}", isa.name());
                let again = session.run(&[(&port.name, &input)]).expect(name);
                assert_eq!(outputs[0].view().bytes, again[0].view().bytes, "{name}: the runner's answer");
            }
        }
    }
}
