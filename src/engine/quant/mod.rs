//! The quantizer's vocabulary: recipe and report.
