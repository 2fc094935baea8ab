//! Octet: takes a float ONNX model and calibration data, quantizes the model to INT8, serves it,
//! and tells what was gained and what was lost.
//!
//! Three layers, and nothing calls upward: [`api`] speaks HTTP, [`service`] keeps and schedules,
//! [`engine`] computes. [`app`] ties them together and [`config`] reads the settings.
//! `docs/ARCHITECTURE.md` has the drawing; `tests/architecture.rs` keeps it true.

pub mod api;
pub mod app;
pub mod config;
pub mod engine;
pub mod service;
