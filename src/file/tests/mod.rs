//! Tests of the room: a model of one file, what a crash leaves, cases worth a test of their own.
mod cases;
mod crash;
mod disk;
mod model;
mod promises;
