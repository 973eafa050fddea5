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
        // Its gradient comes with that of the scale, as published.
        SiteKind::Norm { .. } if part == "bias" => [0.0, 0.0, n * count],
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

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Var};

    use super::*;

    /// One block of width 8 with biases everywhere, under a tied head of 16 tokens.
    fn block() -> (SiteMap, Vec<Param>) {
        let linear = |i, o| SiteKind::Linear { i, o, bias: true };
        let (norm, wide) = (SiteKind::Norm { d: 8 }, linear(8, 8));
        let inner = [
            ("attn_norm", norm, "ln1"),
            ("attn.q", wide, "q"),
            ("attn.k", wide, "k"),
            ("attn.v", wide, "v"),
            ("attn.o", wide, "o"),
            ("mlp_norm", norm, "ln2"),
            ("mlp.up", linear(8, 32), "fc1"),
            ("mlp.down", linear(32, 8), "fc2"),
        ];
        let param = |module: &str, part: &str, dims: &[usize]| {
            let var = Var::zeros(dims, DType::F32, &Device::Cpu).unwrap();
            Param::whole(format!("{module}.{part}"), var)
        };
        let mut sites = SiteMap::default();
        sites.add("embed", SiteKind::Embed { v: 16, d: 8 }, None, Some("emb".into()));
        let mut params = vec![param("emb", "weight", &[16, 8])];
        for (site, kind, module) in inner {
            sites.add(format!("layers.0.{site}"), kind, Some(0), Some(module.into()));
            let (weight, bias) = match kind {
                SiteKind::Linear { i, o, .. } => (vec![o, i], o),
                _ => (vec![8], 8),
            };
            params.push(param(module, "weight", &weight));
            params.push(param(module, "bias", &[bias]));
        }
        let head = SiteKind::Linear { i: 8, o: 16, bias: false };
        sites.add("logits", head, None, Some("lm_head".into()));
        (sites, params)
    }

    #[test]
    fn the_published_block() {
        let (sites, params) = block();
        let costs = Costs::of(&sites, &params, &[(4, 4)]);
        let sum = |of: &[f64]| of.iter().sum::<f64>();
        assert_eq!((costs.forward, sum(&costs.t_dy), sum(&costs.t_dw)), (4288.0, 4160.0, 4064.0));
        let backward = |names: &[&str], convention| {
            let chosen: Vec<bool> = params.iter().map(|p| names.contains(&&*p.name)).collect();
            costs.backward_of(&chosen, convention)
        };
        let (inclusive, exclusive) = (Convention::Inclusive, Convention::Exclusive);
        let (up, down) = (["fc1.weight"], ["fc2.weight"]);
        assert_eq!((backward(&down, inclusive), backward(&down, exclusive)), (2560.0, 1536.0));
        assert_eq!((backward(&up, inclusive), backward(&up, exclusive)), (3584.0, 2560.0));
        assert_eq!(backward(&["fc1.weight", "fc2.weight"], inclusive), 4608.0);
        assert_eq!((backward(&[], inclusive), backward(&[], exclusive)), (0.0, 0.0));
    }

    #[test]
    fn rows_count_by_their_own_length_and_a_head_of_its_own_by_trained_tokens() {
        let (sites, mut params) = block();
        let at = |costs: &Costs, name: &str, params: &[Param]| {
            let k = params.iter().position(|p| p.name == name).unwrap();
            (costs.t_dy[k], costs.t_dw[k])
        };
        // 4 + 1 tokens of which 3 are trained: attention sees 16 + 1 pairs.
        let tied = Costs::of(&sites, &params, &[(4, 2), (1, 1)]);
        assert_eq!(at(&tied, "v.bias", &params), (4.0 * 17.0 * 8.0, 5.0 * 8.0));
        assert_eq!(at(&tied, "emb.weight", &params), (0.0, 3.0 * 128.0 + 128.0));
        assert_eq!(at(&tied, "fc2.bias", &params), (3.0 * 128.0, 5.0 * 8.0));
        let var = Var::zeros((16, 8), DType::F32, &Device::Cpu).unwrap();
        params.push(Param::whole("lm_head.weight", var));
        let apart = Costs::of(&sites, &params, &[(4, 2), (1, 1)]);
        assert_eq!(at(&apart, "lm_head.weight", &params), (3.0 * 128.0, 3.0 * 128.0));
        assert_eq!(at(&apart, "emb.weight", &params), (0.0, 0.0));
        assert_eq!(at(&apart, "fc2.bias", &params), (0.0, 5.0 * 8.0));
        assert_eq!(apart.forward, tied.forward);
    }

    #[test]
    fn the_share_left_for_the_backward_pass() {
        // Forward costs half of backward.
        let costs = Costs { forward: 0.5, t_dy: vec![0.25, 0.25], t_dw: vec![0.25, 0.25] };
        for (rho, share) in [(0.5, 0.25), (0.7, 0.55), (0.36, 0.04), (1.0, 1.0), (0.3, 0.05)] {
            let found = costs.backward_share(rho, 0.05);
            assert!((found - share).abs() < 1e-12, "{rho}: {found}");
        }
        let (all, top) = ([true; 2], [false, true]);
        assert!((costs.share(&all, Convention::Inclusive) - 1.0).abs() < 1e-12);
        assert!((costs.share(&top, Convention::Inclusive) - 1.0 / 1.5).abs() < 1e-12);
        assert!((costs.share(&top, Convention::Exclusive) - 0.75 / 1.5).abs() < 1e-12);
        assert_eq!([0.1, 0.25, 0.49, 0.5, 1.0].map(|s| costs.reached(s)), [1, 1, 1, 2, 2]);
    }
}
