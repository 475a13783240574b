//! Tests of the whole: what no crate can test of itself.

mod layering;
