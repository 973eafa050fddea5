//! What a tensor costs forward and backward, in multiply-adds.

use luthier_core::{Param, SiteInfo, SiteKind, SiteMap};

use super::select::Convention;

/// Costs of the tensors in forward order.
#[derive(Clone, Debug, PartialEq)]
pub struct Costs {
    /// All of the forward pass.
    pub forward: f64,
    /// Of passing a gradient through the tensor's operation.
    pub t_dy: Vec<f64>,
    /// Of the tensor's own gradient.
    pub t_dw: Vec<f64>,
}

impl Costs {
    /// Costs of `params`, weights of the model in forward order, for rows of so many tokens of
    /// which so many are trained.
    pub fn of(sites: &SiteMap, params: &[Param], rows: &[(usize, usize)]) -> Self {
        let n: f64 = rows.iter().map(|(n, _)| *n as f64).sum();
        let trained: f64 = rows.iter().map(|(_, m)| *m as f64).sum();
        let squares: f64 = rows.iter().map(|(n, _)| (*n * *n) as f64).sum();
        let tied =
            !params.iter().any(|p| p.name.starts_with("lm_head")) && sites.get("logits").is_some();
        let mut costs = Costs { forward: 0.0, t_dy: Vec::new(), t_dw: Vec::new() };
        for param in params {
            let Some((module, part)) = param.name.rsplit_once('.') else { continue };
            let site = sites.by_module(module);
            let [dy, dw, forward] = match site {
                Some(site) => of_tensor(site, part, n, trained, tied, param.count() as f64),
                None => [0.0; 3],
            };
            costs.t_dy.push(dy);
            costs.t_dw.push(dw);
            costs.forward += forward;
            // Attention itself has no tensor: it stands with what it reads last.
            if let Some(site) = site.filter(|s| s.name.ends_with("attn.v") && part == last(s)) {
                let width = attention_width(sites, site);
                *costs.t_dy.last_mut().expect("just pushed") += 4.0 * squares * width;
                costs.forward += 2.0 * squares * width;
            }
        }
        if let (true, Some(SiteKind::Linear { i, o, .. })) =
            (tied, sites.get("logits").map(|s| s.kind))
            && let Some(last) = costs.t_dy.last_mut()
        {
            *last += trained * (i * o) as f64;
        }
        costs
    }

    /// All of the backward pass.
    pub fn backward(&self) -> f64 {
        self.t_dy.iter().chain(&self.t_dw).sum()
    }

    /// The share of the backward pass that is left when forward and backward together may cost
    /// `rho` of what they do; at least `least`.
    pub fn backward_share(&self, rho: f64, least: f64) -> f64 {
        let c = self.forward / self.backward();
        let share = rho * (1.0 + c) - c;
        if share > 0.0 { share } else { least }
    }

    /// How many tensors a gradient can be passed to within a share of the backward pass, counted
    /// from the output; at least one.
    pub fn reached(&self, share: f64) -> usize {
        let mut left = share * self.backward();
        let mut count = 0;
        for dy in self.t_dy.iter().rev() {
            left -= dy;
            if left < 0.0 {
                break;
            }
            count += 1;
        }
        count.max(1)
    }

    /// Cost of the backward pass of a choice.
    pub fn backward_of(&self, chosen: &[bool], convention: Convention) -> f64 {
        let Some(deepest) = chosen.iter().position(|m| *m) else { return 0.0 };
        let from = deepest + usize::from(convention == Convention::Exclusive);
        let dw = self.t_dw.iter().zip(chosen).filter(|(_, m)| **m).map(|(dw, _)| dw);
        self.t_dy[from..].iter().chain(dw).sum()
    }

    /// Work of a choice as a share of full fine-tuning's.
    pub fn share(&self, chosen: &[bool], convention: Convention) -> f64 {
        (self.forward + self.backward_of(chosen, convention)) / (self.forward + self.backward())
    }
}

/// The last tensor of a site.
fn last(site: &SiteInfo) -> &'static str {
    match site.kind {
        SiteKind::Linear { bias: true, .. } => "bias",
        _ => "weight",
    }
}

/// Width of all heads' queries side by side.
fn attention_width(sites: &SiteMap, v: &SiteInfo) -> f64 {
    let q = sites.get(&v.name.replace("attn.v", "attn.q")).unwrap_or(v);
    q.linear().map_or(0.0, |(_, o)| o as f64)
}

/// `[t_dy, t_dw, forward]` of a tensor.
fn of_tensor(
    site: &SiteInfo,
    part: &str,
    n: f64,
    trained: f64,
    tied: bool,
    count: f64,
) -> [f64; 3] {
    match site.kind {
        SiteKind::Embed { .. } if tied => {
            [0.0, trained * count + count, n * count.min(width(site)) + trained * count]
        }
        SiteKind::Embed { .. } => [0.0, 0.0, n * width(site)],
        _ if part == "bias" => [0.0, n * count, n * count],
        SiteKind::Linear { .. } if site.name == "logits" => [trained * count; 3],
        _ => [n * count; 3],
    }
}

fn width(site: &SiteInfo) -> f64 {
    match site.kind {
        SiteKind::Embed { d, .. } => d as f64,
        _ => 0.0,
    }
}
