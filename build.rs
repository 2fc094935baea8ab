//! Makes Rust of `proto/`, without a protoc on the machine.

use std::error::Error;
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_imports(true).open_file("grpc_service.proto")?;
    // What reflection tells of.
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("inference.bin"), compiler.encode_file_descriptor_set())?;
    tonic_prost_build::configure()
        .build_client(false)
        .build_transport(false)
        // Tensors are slices of the message that came, and go out as slices of what the model wrote.
        .bytes(".inference.ModelInferRequest.raw_input_contents")
        .bytes(".inference.ModelInferResponse.raw_output_contents")
        .bytes(".inference.ModelRepositoryParameter.bytes_param")
        .compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}
