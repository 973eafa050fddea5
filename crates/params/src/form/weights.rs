//! What forms share that learn the model's own weights.

use candle_core::Var;
use luthier_core::{Mask, Policy, Result, SiteInfo, SiteKind};

use crate::Scope;

/// Whether weights stand at a site.
pub(crate) fn has_weight(site: &SiteInfo) -> bool {
    !matches!(site.kind, SiteKind::Activation { .. })
}

/// Puts variables in place of the weights at `sites`, those whose name and shape `wanted` accepts.
pub(crate) fn learn(
    policy: Policy,
    sites: &[&SiteInfo],
    wanted: impl Fn(&str, &Var) -> bool,
    scope: &mut Scope,
) -> Result<Policy> {
    let ids: Vec<_> = sites.iter().map(|site| site.id).collect();
    let (mut model, vars) = policy.model.learn(&ids)?;
    let (vars, unwanted): (Vec<_>, Vec<_>) =
        vars.into_iter().partition(|(name, var)| wanted(name, var));
    if !unwanted.is_empty() {
        // These alone: what another form put there goes on learning.
        let rest: Vec<_> = unwanted.iter().map(|(_, var)| var.as_tensor().id()).collect();
        model = model.resting(&|w| !rest.contains(&w.id()))?;
    }
    scope.adopt(vars)?;
    Ok(Policy { model, hooks: policy.hooks })
}

/// A variable's numbers.
pub(crate) fn values(var: &Var) -> Result<Vec<f32>> {
    Ok(var.flatten_all()?.to_vec1::<f32>()?)
}

/// Masks on the `count` entries with the largest scores in all tensors together; of equal ones the
/// first, by tensor and position.
pub(crate) fn largest(scores: &[Vec<f32>], count: usize) -> Result<Vec<Mask>> {
    let total: usize = scores.iter().map(Vec::len).sum();
    if count >= total {
        return scores.iter().map(|s| Mask::new((0..s.len() as u32).collect())).collect();
    }
    if count == 0 {
        return scores.iter().map(|_| Mask::new(Vec::new())).collect();
    }
    let mut all: Vec<f32> = Vec::with_capacity(total);
    scores.iter().for_each(|s| all.extend_from_slice(s));
    let (above, bar, _) = all.select_nth_unstable_by(count - 1, |a, b| b.total_cmp(a));
    let bar = *bar;
    // As many of those that equal the bar as are left over by those above it.
    let mut ties = count - above.iter().filter(|s| s.total_cmp(&bar).is_gt()).count();
    let mut chosen = |score: &f32| match score.total_cmp(&bar) {
        std::cmp::Ordering::Greater => true,
        std::cmp::Ordering::Equal if ties > 0 => {
            ties -= 1;
            true
        }
        _ => false,
    };
    let mut mask = |scores: &Vec<f32>| {
        let positions = scores.iter().enumerate().filter(|(_, s)| chosen(s));
        Mask::new(positions.map(|(i, _)| i as u32).collect())
    };
    scores.iter().map(&mut mask).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn positions(masks: &[Mask]) -> Vec<&[u32]> {
        masks.iter().map(Mask::positions).collect()
    }

    #[test]
    fn the_threshold_is_global_and_ties_go_to_the_first() {
        // Paper 07: of A within ±10 and B within ±0.1, as many as A has are all of A.
        let a = vec![10.0, 7.0, 9.0];
        let b = vec![0.1, 0.05, 0.1];
        let masks = largest(&[a, b], 3).unwrap();
        assert_eq!(positions(&masks), [&[0u32, 1, 2][..], &[]]);
        let tied = largest(&[vec![1.0, 2.0, 1.0], vec![1.0]], 3).unwrap();
        assert_eq!(positions(&tied), [&[0u32, 1, 2][..], &[]]);
        let moved = [0.3f32, 0.05, 0.0, 0.8];
        assert_eq!(positions(&largest(&[moved.to_vec()], 2).unwrap()), [&[0u32, 3][..]]);
        assert_eq!(largest(&[moved.to_vec()], 9).unwrap()[0].len(), 4);
        assert!(largest(&[moved.to_vec()], 0).unwrap()[0].is_empty());
    }
}
