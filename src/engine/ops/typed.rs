//! Loops over elements of whatever type.

/// Runs `$body` with `$t` standing for the Rust type of the elements; truth values are bytes.
macro_rules! with_type {
    ($dtype:expr, $t:ident => $body:expr) => {{
        use $crate::engine::tensor::DType;
        match $dtype {
            DType::F32 => {
                type $t = f32;
                $body
            }
            DType::F64 => {
                type $t = f64;
                $body
            }
            DType::I64 => {
                type $t = i64;
                $body
            }
            DType::I32 => {
                type $t = i32;
                $body
            }
            DType::I16 => {
                type $t = i16;
                $body
            }
            DType::I8 => {
                type $t = i8;
                $body
            }
            DType::U64 => {
                type $t = u64;
                $body
            }
            DType::U32 => {
                type $t = u32;
                $body
            }
            DType::U16 => {
                type $t = u16;
                $body
            }
            DType::F16 => {
                type $t = half::f16;
                $body
            }
            DType::BF16 => {
                type $t = half::bf16;
                $body
            }
            DType::U8 | DType::Bool => {
                type $t = u8;
                $body
            }
        }
    }};
}

/// As [`with_type`], for types that have arithmetic; others are refused by name.
macro_rules! with_number {
    ($dtype:expr, $t:ident => $body:expr) => {{
        use $crate::engine::tensor::DType;
        match $dtype {
            DType::F32 => {
                type $t = f32;
                $body
            }
            DType::F64 => {
                type $t = f64;
                $body
            }
            DType::I64 => {
                type $t = i64;
                $body
            }
            DType::I32 => {
                type $t = i32;
                $body
            }
            DType::I16 => {
                type $t = i16;
                $body
            }
            DType::I8 => {
                type $t = i8;
                $body
            }
            DType::U64 => {
                type $t = u64;
                $body
            }
            DType::U32 => {
                type $t = u32;
                $body
            }
            DType::U16 => {
                type $t = u16;
                $body
            }
            DType::U8 => {
                type $t = u8;
                $body
            }
            other => Err(format!("{other} is not supported here").into()),
        }
    }};
}

pub(super) use {with_number, with_type};
