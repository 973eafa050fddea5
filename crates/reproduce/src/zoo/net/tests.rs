use candle_core::{D, Var};

use super::*;
use crate::zoo::digits::pairs;

fn small() -> Shape {
    Shape { input: 160, width: 12, hidden: 20, blocks: 2, heads: vec![10, 4] }
}

/// The same net in candle operations; `by` holds its weights.
fn naive(shape: &Shape, by: &dyn Fn(&str) -> Tensor, pixels: &Tensor) -> Tensor {
    let linear = |x: &Tensor, name: &str| {
        let y = x.matmul(&by(&format!("{name}.weight")).t().unwrap()).unwrap();
        y.broadcast_add(&by(&format!("{name}.bias"))).unwrap()
    };
    let norm = |x: &Tensor, name: &str| {
        let x = x.broadcast_sub(&x.mean_keepdim(D::Minus1).unwrap()).unwrap();
        let variance = x.sqr().unwrap().mean_keepdim(D::Minus1).unwrap();
        let x = x.broadcast_div(&(variance + 1e-5).unwrap().sqrt().unwrap()).unwrap();
        let x = x.broadcast_mul(&by(&format!("{name}.weight"))).unwrap();
        x.broadcast_add(&by(&format!("{name}.bias"))).unwrap()
    };
    let mut h = linear(pixels, "input");
    for block in 0..shape.blocks {
        let x = norm(&h, &format!("blocks.{block}.norm"));
        let u = linear(&x, &format!("blocks.{block}.up")).gelu().unwrap();
        h = (h + linear(&u, &format!("blocks.{block}.down"))).unwrap();
    }
    norm(&h, "norm")
}

#[test]
fn loss_and_gradients_are_those_of_candle() {
    let shape = small();
    let images = pairs(7, Seed(4));
    let weights = shape.random(Seed(1)).unwrap();
    let vars: Vec<(String, Var)> =
        weights.iter().map(|(name, t)| (name.to_string(), Var::from_tensor(t).unwrap())).collect();
    let by = |name: &str| vars.iter().find(|(n, _)| n == name).unwrap().1.as_tensor().clone();
    let pixels = Tensor::from_vec(images.pixels_nd.clone(), (7, 160), &Device::Cpu).unwrap();
    let z = naive(&shape, &by, &pixels);
    // Wishes that are neither 0 nor 1 show a wrong softmax; the second question is smoothed.
    let questions = [(0, 0, 0.0f32), (1, 5, 0.3)];
    let (mut asked, mut total) = (Vec::new(), Tensor::new(0f32, &Device::Cpu).unwrap());
    for (head, question, smoothing) in questions {
        let classes = shape.heads[head];
        let mut wanted = one_hot(&images.answers[question], classes);
        wanted.iter_mut().for_each(|x| *x = *x * (1.0 - smoothing) + smoothing / classes as f32);
        let logits = z.matmul(&by(&format!("heads.{head}.weight")).t().unwrap()).unwrap();
        let logits = logits.broadcast_add(&by(&format!("heads.{head}.bias"))).unwrap();
        let top = logits.max_keepdim(1).unwrap();
        let logp = logits.broadcast_sub(&top).unwrap();
        let all = logp.exp().unwrap().sum_keepdim(1).unwrap().log().unwrap();
        let logp = logp.broadcast_sub(&all).unwrap();
        let want = Tensor::from_vec(wanted.clone(), (7, classes), &Device::Cpu).unwrap();
        let loss = ((logp * want).unwrap().sum_all().unwrap() / -7.0).unwrap();
        total = (total + loss).unwrap();
        asked.push(Asked { head, wanted_nc: wanted });
    }
    let grads = total.backward().unwrap();
    let (loss, found) = shape.gradient(&weights, &images.pixels_nd, &asked, &|_| true).unwrap();
    assert!((loss - f64::from(total.to_scalar::<f32>().unwrap())).abs() < 1e-5);
    assert_eq!(found.len(), vars.len());
    for (name, var) in &vars {
        let numbers = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let (want, got) = (numbers(grads.get(var).unwrap()), numbers(found.get(name).unwrap()));
        let largest = want.iter().fold(0f32, |m, x| m.max(x.abs()));
        assert!(largest > 1e-4, "{name}");
        for (want, got) in want.iter().zip(&got) {
            assert!((want - got).abs() < 2e-4 * largest, "{name}: {got}, expected {want}");
        }
    }
    // What does not learn has no gradient, and the rest has the same.
    let heads = shape.gradient(&weights, &images.pixels_nd, &asked, &is_head).unwrap().1;
    assert!(heads.len() == 4 && heads.iter().all(|(name, _)| is_head(name)));
}

#[test]
fn logits_do_not_depend_on_how_images_are_cut() {
    let shape = Shape { heads: vec![10; 8], ..small() };
    let images = pairs(PASS + 9, Seed(5));
    let weights = shape.random(Seed(2)).unwrap();
    let all = shape.logits(&weights, &images, &[3, 1]).unwrap();
    let first = shape.logits(&weights, &images.first(20), &[1]).unwrap();
    assert!(all[1][..200].iter().zip(&first[0]).all(|(a, b)| (a - b).abs() < 1e-5));
    let shares = shape.accuracies(&weights, &images, &[3, 1]).unwrap();
    let counted = hits(&all[0], &images.answers[3]).iter().filter(|h| **h).count();
    assert_eq!(shares[0], counted as f64 / images.len() as f64);
    // Right answers by construction.
    assert_eq!(hits(&one_hot(&[3, 0, 2], 4), &[3, 0, 1]), [true, true, false]);
}

#[test]
fn a_net_of_the_published_sizes_has_the_published_number_of_weights() {
    let shape = Shape { input: 160, width: 96, hidden: 192, blocks: 8, heads: vec![10, 10, 4] };
    let of_blocks: usize = shape
        .tensors()
        .iter()
        .filter(|(name, _)| block_of(name).is_some())
        .map(|(_, dims)| dims.iter().product::<usize>())
        .sum();
    assert_eq!(of_blocks, 298_752);
    assert_eq!((block_of("blocks.12.up.weight"), block_of("norm.weight")), (Some(12), None));
    let weights = shape.random(Seed(1)).unwrap();
    let numbers =
        |name: &str| weights.get(name).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let bound = 1.0 / 192f32.sqrt();
    let down = numbers("blocks.3.down.bias");
    assert!(down.iter().all(|x| x.abs() <= bound) && down.iter().any(|x| x.abs() > 0.8 * bound));
    assert_eq!((numbers("norm.weight")[0], numbers("blocks.0.norm.bias")[0]), (1.0, 0.0));
}
