//! Loads and stores of the crate rangemap, timed as those of guestmem's range map are.
//!
//!     rangemap_peer ROWS CHANGES INDICES ROUNDS
//!
//! Three files of little-endian 64-bit words: (first, last, value) of the ranges to begin with and of the stores that
//! are timed, and the indices that are looked up. `benchmarks/rust_peer.py` writes them, starts this and compares what
//! it prints, in one line of JSON: the least nanoseconds a load and a store, the sum of all loads before and after the
//! stores, and how many ranges there are at the end.

use rangemap::RangeMap;
use std::{env, fs, time::Instant};

type Map = RangeMap<u64, u64>;

fn words(path: &str) -> Vec<u64> {
    let bytes = fs::read(path).unwrap_or_else(|error| panic!("{path}: {error}"));
    bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect()
}

fn store_all(map: &mut Map, rows: &[u64]) {
    for row in rows.chunks_exact(3) {
        map.insert(row[0]..row[1] + 1, row[2]);
    }
}

fn load_all(map: &Map, indices: &[u64]) -> u64 {
    indices.iter().fold(0u64, |sum, index| sum.wrapping_add(map.get(index).copied().unwrap_or(0)))
}

/// Nanoseconds of the fastest of so many runs, after one that is not counted.
fn least(rounds: u32, mut run: impl FnMut()) -> f64 {
    run();
    let mut best = f64::INFINITY;
    for _ in 0..rounds {
        let began = Instant::now();
        run();
        best = best.min(began.elapsed().as_nanos() as f64);
    }
    best
}

fn main() {
    let arguments: Vec<String> = env::args().collect();
    let (rows, changes, indices) = (words(&arguments[1]), words(&arguments[2]), words(&arguments[3]));
    let rounds = arguments[4].parse().expect("ROUNDS is a number");
    let mut map = Map::new();
    store_all(&mut map, &rows);
    let before = load_all(&map, &indices);
    let loading = least(rounds, || assert_eq!(load_all(&map, &indices), before)) / indices.len() as f64;
    let storing = least(rounds, || store_all(&mut map, &changes)) / (changes.len() / 3) as f64;
    let after = load_all(&map, &indices);
    let ranges = map.iter().count();
    println!(
        r#"{{"load": {loading}, "store": {storing}, "before": {before}, "after": {after}, "ranges": {ranges}}}"#
    );
}
