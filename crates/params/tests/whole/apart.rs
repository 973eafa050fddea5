//! Passes side by side.

use candle_core::Tensor;
use luthier_testkit::assert_same_bits;

/// Asserts that passes side by side, as evaluation runs them, give what each gives alone.
pub fn assert_apart(run: impl Fn(usize) -> Tensor + Sync) {
    let alone: Vec<Tensor> = (0..8).map(&run).collect();
    let again = |i: usize| (0..5).fold(None, |_, _| Some(run(i)));
    let together: Vec<Tensor> = std::thread::scope(|scope| {
        let again = &again;
        let threads: Vec<_> = (0..8).map(|i| scope.spawn(move || again(i))).collect();
        threads.into_iter().map(|t| t.join().unwrap().unwrap()).collect()
    });
    for (got, want) in together.iter().zip(&alone) {
        assert_same_bits("pass", got, want);
    }
}
