//! The server over HTTP, in this process: every route, and every wrong input, with its status and its words.

mod allocations;
mod artifacts;
mod channels;
mod corpus;
mod datasets;
mod endpoints;
mod infer;
mod jobs;
mod keys;
mod limits;
mod lint;
mod models;
mod mutated;
mod operators;
mod restart;
mod support;
mod system;
mod uploads;
