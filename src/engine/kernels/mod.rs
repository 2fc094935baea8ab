//! Numeric inner loops on plain slices. Knows nothing of graphs or models.

pub mod isa;
