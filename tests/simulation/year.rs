//! A simulated year.
