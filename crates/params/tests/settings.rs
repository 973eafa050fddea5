//! Settings of `[train.params]`: what is refused, what is written back, what they make learn.

use std::sync::Arc;

use luthier_core::{Model, Seed};
use luthier_params::{Lora, Params};
use luthier_testkit::{Fake, Shape};

fn model() -> Arc<dyn Model> {
    Arc::new(Fake::new(Shape::default(), Seed(11)))
}

fn params(text: &str) -> Params {
    toml::from_str(text).unwrap_or_else(|e| panic!("{text}: {e}"))
}

#[test]
fn bad_settings_are_refused_by_their_key() {
    let refused = [
        ("[lora]\nr = 0", "train.params.lora.r: layers.0.attn.v: expected a rank from 1 to 6"),
        ("[lora]\nr = 7", "train.params.lora.r"),
        (
            "[lora]\nr = 2\nrank_pattern = { \"**.up\" = 9 }",
            "train.params.lora.rank_pattern: layers.0.mlp.up",
        ),
        (
            "[lora]\nr = 2\nrank_pattern = { \"**.q\" = 1 }",
            "`**.q` matches no site that is learned",
        ),
        (
            "[lora]\nr = 2\nalpha_pattern = { \"**.up\" = 1, \"layers.0.**\" = 2 }",
            "gives layers.0.mlp.up both",
        ),
        ("[lora]\nr = 2\nalpha = 0", "train.params.lora.alpha"),
        ("[lora]\nr = 2\ndropout = 1.0", "train.params.lora.dropout"),
        (
            "[lora]\nr = 2\nat = \"layers.*.attn.qq\"",
            "train.params.lora.at: `layers.*.attn.qq` matches no",
        ),
        ("[lora]\nr = 2\nat = \"**.resid_post\"", "names layers.0.resid_post, which has no weight"),
        ("[lora]\nr = 2\nexclude = [\"**.q\"]", "train.params.lora.exclude: `**.q` matches no"),
        (
            "[lora]\nr = 2\nat = \"embed\"\nexclude = \"embed\"",
            "names no site that is not excluded",
        ),
        ("[lora]\nr = 2\nbias = true\nat = \"embed\"", "train.params.lora.bias"),
        (
            "[full]\nfreeze_layers = 3",
            "train.params.full.freeze_layers: expected at most the model's 2",
        ),
        ("[full]\nfreeze_layers = 1\nreinit_layers = 2", "train.params.full.reinit_layers"),
        ("[sparse]\n", "train.params.sparse: expected one rule"),
        ("[sparse.lift]\nfilter_rank = 0", "train.params.sparse.lift.filter_rank"),
        ("[sparse.random]\ndensity = 0.0", "train.params.sparse.random.density"),
        ("[half]\nratio = 1.5", "train.params.half.ratio"),
        ("[green]\nrho = 0.0", "train.params.green.rho"),
        ("[full]\nat = \"layers.9.**\"", "train.params.full.at"),
    ];
    for (text, want) in refused {
        let params: Params = toml::from_str(text).unwrap();
        let err = params.bind(&model(), Seed(1)).map(|_| ()).unwrap_err();
        assert!(err.to_string().contains(want), "{text}\ngave: {err}");
        assert_eq!(err.exit_code(), 2, "{text}");
    }
    assert!(toml::from_str::<Params>("[lora]\nrank = 4").is_err());
    assert!(toml::from_str::<Params>("[lora]\nat = 4").is_err());
}

#[test]
fn a_recipe_can_be_written_as_it_was_read() {
    let text = "[lora]\nr = 4\nat = [\"**.q\", \"embed\"]\nexclude = \"layers.0.**\"";
    let params: Params = toml::from_str(text).unwrap();
    let lora = params.lora.as_ref().unwrap();
    assert_eq!((lora.at.0.len(), lora.exclude.0.len()), (2, 1));
    let again: Params = toml::from_str(&toml::to_string(&params).unwrap()).unwrap();
    assert_eq!(again, params);
    assert_eq!(Params::default().with_defaults().lora, Some(Lora::default()));
}

#[test]
fn full_learns_what_it_is_told_to() {
    let some: Params =
        toml::from_str("[full]\nat = \"layers.*.mlp.*\"\nexclude = \"layers.0.mlp.down\"").unwrap();
    let bound = some.bind(&model(), Seed(1)).unwrap();
    let names: Vec<&str> = bound.params.iter().map(|p| p.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "model.layers.0.mlp.up_proj.weight",
            "model.layers.0.mlp.up_proj.bias",
            "model.layers.1.mlp.up_proj.weight",
            "model.layers.1.mlp.up_proj.bias",
            "model.layers.1.mlp.down_proj.weight",
        ]
    );
    let tied: Arc<dyn Model> =
        Arc::new(Fake::new(Shape { tied: true, ..Shape::default() }, Seed(1)));
    let all = params("[full]").bind(&tied, Seed(1)).unwrap();
    assert_eq!(all.params.iter().filter(|p| p.name.contains("embed")).count(), 1);
    for text in ["[full]\nfreeze_layers = 1", "[half]\ntrain_embeddings = false"] {
        let bound = params(text).bind(&tied, Seed(1)).unwrap();
        assert!(bound.params.iter().all(|p| !p.name.contains("embed")), "{text}");
    }
    let only = |text: &str| -> Vec<String> {
        params(text).bind(&model(), Seed(1)).unwrap().params.into_iter().map(|p| p.name).collect()
    };
    let biases = ["model.layers.0.mlp.up_proj.bias", "model.layers.1.mlp.up_proj.bias"];
    assert_eq!(only("[full]\nparts = \"bias\""), biases);
    let frozen = only("[full]\nfreeze_layers = 1");
    assert!(frozen.iter().all(|n| !n.contains("embed") && !n.contains("layers.0.")), "{frozen:?}");
    assert_eq!(only("[full]\nfreeze_layers = 2"), ["model.norm.weight", "lm_head.weight"]);
}
