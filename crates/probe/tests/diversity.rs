//! Averages of two models: the numbers of the paper's specification.

use luthier_core::Seed;
use luthier_probe::diversity::{Average, Cells, Pair, Votes, calibration, ece};

const PAIR: Pair = Pair {
    invariant: [2, 2],
    spurious: [3, 3],
    shared_invariant: 0,
    shared_spurious: 0,
    scale: 1.0,
};

#[track_caller]
fn near(got: f64, want: f64) {
    assert!((got - want).abs() < 6e-6, "{got}, expected {want}");
}

fn of(pair: Pair, average: Average) -> Votes {
    pair.average(average, 3, 0.9).unwrap()
}

#[test]
fn accuracies_are_those_of_the_paper() {
    let p: f64 = 0.9;
    near(PAIR.first(3, p).accuracy().unwrap(), 1.0 - 5.0 * p.powi(3) / 27.0);
    let both = 1.0 - 2.0 * p.powi(5) / 81.0 - 17.0 * p.powi(6) / 729.0;
    for average in [Average::Outputs, Average::Weights] {
        near(of(PAIR, average).accuracy().unwrap(), both);
    }
    near(both, 0.973_027);
    // A loud second model.
    near(of(Pair { scale: 3.0, ..PAIR }, Average::Outputs).accuracy().unwrap(), 0.953_10);
    near(of(Pair { scale: 1.5, ..PAIR }, Average::Outputs).accuracy().unwrap(), 0.973_03);
    // A spurious feature in common hurts the weights' average; invariant ones help it.
    let spurious = Pair { shared_spurious: 1, ..PAIR };
    near(of(spurious, Average::Outputs).accuracy().unwrap(), 0.945_73);
    near(of(spurious, Average::Weights).accuracy().unwrap(), 0.755_38);
    let invariant = Pair { shared_invariant: 2, ..PAIR };
    near(of(invariant, Average::Weights).accuracy().unwrap(), 1.0);
    near(of(invariant, Average::Outputs).accuracy().unwrap(), 0.973_03);
}

#[test]
fn scores_and_spreads_follow_from_what_is_shared() {
    let pair = Pair { shared_invariant: 1, shared_spurious: 2, ..PAIR };
    let (outputs, weights) = (of(pair, Average::Outputs), of(pair, Average::Weights));
    near(outputs.score(), 0.1 * 6.0 + 4.0);
    near(weights.score(), 0.1 * (6.0 + 4.0) + 4.0 + 2.0);
    // One vote of 2 for two of 1 adds 2 to the squares, one of 4 adds 14.
    near(outputs.spread().powi(2), 6.0 + 2.0 * 2.0);
    near(weights.spread().powi(2), 6.0 + 14.0 * 2.0);
    let alone = PAIR.first(3, 0.9);
    near(
        of(PAIR, Average::Weights).score()
            / of(PAIR, Average::Weights).spread()
            / (alone.score() / alone.spread()),
        2f64.sqrt(),
    );
    assert!(Pair { shared_spurious: 4, ..PAIR }.average(Average::Outputs, 3, 0.9).is_err());
}

#[test]
fn draws_agree_with_counts() {
    for (pair, average) in [
        (PAIR, Average::Outputs),
        (Pair { scale: 3.0, ..PAIR }, Average::Outputs),
        (Pair { shared_spurious: 1, ..PAIR }, Average::Weights),
    ] {
        let votes = of(pair, average);
        let (exact, drawn) = (votes.accuracy().unwrap(), votes.drawn(20_000, Seed(1)).unwrap());
        assert!((exact - drawn).abs() < 0.01, "{exact} {drawn}");
    }
    let many = Votes { classes: 10, p: 0.5, sure: 1.0, spurious: vec![1.0; 32] };
    let error = many.accuracy().unwrap_err().to_string();
    assert!(error.contains("32 features of 10 classes are too many"), "{error}");
    assert!(many.drawn(100, Seed(1)).unwrap() > 0.9);
}

#[test]
fn cells_say_who_was_right() {
    let (t, f) = (true, false);
    let (first, second, average) =
        ([f, f, t, t, f, t, f, f], [f, f, t, t, t, f, f, f], [t, f, f, t, t, t, t, t]);
    let cells = Cells::of(&first, &second, &average).unwrap();
    assert_eq!((cells.false_false_true(), cells.true_true_false()), (3.0 / 8.0, 1.0 / 8.0));
    assert_eq!((cells.net(), cells.gain()), (0.25, 6.0 / 8.0 - 3.0 / 8.0));
    assert_eq!(cells.shares.iter().sum::<f64>(), 1.0);
    // An average that is one of the two adds nothing.
    let same = Cells::of(&first, &second, &second).unwrap();
    assert_eq!((same.false_false_true(), same.true_true_false()), (0.0, 0.0));
    assert!(Cells::of(&first, &second[1..], &average).is_err());
}

#[test]
fn calibration_is_by_bins_of_equal_width() {
    let (confidences, hits) = ([0.95, 0.95, 0.65, 0.65], [true, false, true, true]);
    near(ece(&confidences, &hits, 15).unwrap(), 0.40);
    // In one bin the gaps cancel: mean confidence 0.8, three of four right.
    near(ece(&confidences, &hits, 1).unwrap(), 0.05);
    let likelihoods = [0.2, 0.8, 0.7, 0.3, 0.4, 0.6f32];
    let found = calibration(&likelihoods, &[1, 1, 1], 15).unwrap();
    near(found.confidence, 0.7);
    near(found.accuracy, 2.0 / 3.0);
    near(found.ece, (0.2 + 0.7 + 0.4) / 3.0);
    assert!(calibration(&likelihoods, &[1, 1, 1, 0], 15).is_err());
    assert!(ece(&[1.2], &[true], 15).is_err());
}
