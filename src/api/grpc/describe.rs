//! Metadata, configuration and figures as messages.

use crate::api::grpc::proto::model_config::SchedulingChoice;
use crate::api::grpc::proto::model_metadata_response::TensorMetadata;
use crate::api::grpc::proto::{
    DataType, InferBatchStatistics, InferStatistics, MemoryUsage, ModelConfig, ModelDynamicBatching,
    ModelInput, ModelMetadataResponse, ModelOutput, ModelParameter, ModelStatistics, StatisticDuration,
};
use crate::api::v2::describe::{Configuration, ModelMetadata, PortView};
use crate::engine::tensor::DType;
use crate::service::infer::served::Served;
use crate::service::infer::stats::{BatchTally, Tally};

/// An endpoint as a message.
pub(crate) fn metadata(model: ModelMetadata) -> ModelMetadataResponse {
    let port = |port: PortView| TensorMetadata {
        name: port.name,
        datatype: port.datatype.to_owned(),
        shape: port.shape,
    };
    ModelMetadataResponse {
        name: model.name,
        versions: model.versions,
        platform: model.platform.to_owned(),
        inputs: model.inputs.into_iter().map(port).collect(),
        outputs: model.outputs.into_iter().map(port).collect(),
    }
}

/// A configuration as a message.
pub(crate) fn configuration(config: Configuration) -> ModelConfig {
    let precision = ModelParameter { string_value: config.precision.to_owned() };
    let batching = |delay_us| {
        SchedulingChoice::DynamicBatching(ModelDynamicBatching {
            preferred_batch_size: Vec::new(),
            max_queue_delay_microseconds: delay_us,
        })
    };
    ModelConfig {
        name: config.name,
        platform: config.platform.to_owned(),
        backend: config.backend.to_owned(),
        max_batch_size: i32::try_from(config.max_batch_size).unwrap_or(i32::MAX),
        input: config
            .inputs
            .into_iter()
            .map(|port| ModelInput { name: port.name, data_type: data_type(port.dtype), dims: port.dims })
            .collect(),
        output: config
            .outputs
            .into_iter()
            .map(|port| ModelOutput { name: port.name, data_type: data_type(port.dtype), dims: port.dims })
            .collect(),
        parameters: [("precision".to_owned(), precision)].into(),
        scheduling_choice: config.batch_delay_us.map(batching),
    }
}

fn data_type(dtype: DType) -> i32 {
    let kind = match dtype {
        DType::F32 => DataType::TypeFp32,
        DType::F64 => DataType::TypeFp64,
        DType::F16 => DataType::TypeFp16,
        DType::BF16 => DataType::TypeBf16,
        DType::I64 => DataType::TypeInt64,
        DType::I32 => DataType::TypeInt32,
        DType::I16 => DataType::TypeInt16,
        DType::I8 => DataType::TypeInt8,
        DType::U64 => DataType::TypeUint64,
        DType::U32 => DataType::TypeUint32,
        DType::U16 => DataType::TypeUint16,
        DType::U8 => DataType::TypeUint8,
        DType::Bool => DataType::TypeBool,
    };
    kind.into()
}

/// The figures of a version as a message.
pub(crate) fn statistics(served: &Served) -> ModelStatistics {
    let figures = served.stats.figures();
    let tally = |t: Tally| Some(StatisticDuration { count: t.count, ns: t.ns });
    let batch = |(size, batch): (&usize, &BatchTally)| InferBatchStatistics {
        batch_size: *size as u64,
        compute_input: tally(batch.input),
        compute_infer: tally(batch.compute),
        compute_output: tally(batch.output),
    };
    ModelStatistics {
        name: served.name.to_string(),
        version: served.source.version.to_string(),
        last_inference: u64::try_from(figures.last_inference_ms).unwrap_or(0),
        inference_count: figures.inference_count,
        execution_count: figures.execution_count,
        inference_stats: Some(InferStatistics {
            success: tally(figures.success),
            fail: tally(figures.fail),
            queue: tally(figures.queue),
            compute_input: tally(figures.input),
            compute_infer: tally(figures.compute),
            compute_output: tally(figures.output),
            cache_hit: tally(Tally::default()),
            cache_miss: tally(Tally::default()),
        }),
        batch_stats: figures.batches.iter().map(batch).collect(),
        memory_usage: vec![MemoryUsage { r#type: "CPU".to_owned(), id: 0, byte_size: served.weight_bytes }],
    }
}
