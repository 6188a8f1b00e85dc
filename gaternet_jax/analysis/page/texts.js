// The texts around the map: what is shown, what is unusual or different, what is similar.

const NEAREST = 8;
const LISTED = 6; // unusual filters named

const badge = (letter) => make("b", { className: `badge ${letter.toLowerCase()}` }, letter);

/** Fills the texts around the map for each of the views. */
class Texts {
  constructor(model, thumbnails, pickImage, pickGate) {
    Object.assign(this, { model, thumbnails, pickImage, pickGate });
  }

  /** Class, prediction and counts of an image. */
  card(image, badge = null, further = null) {
    const { model } = this;
    const wrong = model.isWrong(image);
    const sure = percent(model.confidence[image]);
    const prediction = `${wrong ? "✗ predicted" : "✓ predicted"} ${model.groupName(model.prediction[image])}, ${sure} sure`;
    const unknown = model.group[image] === model.unknownGroup;
    const open = model.countOpen(image);
    return make(
      "div",
      { className: "subject" },
      this.thumbnails.canvas(image, "portrait"),
      make(
        "div",
        {},
        make(
          "p",
          { className: "subject-name" },
          badge,
          `${model.groupName(model.group[image])} `,
          make("small", {}, `image ${model.index[image]}`),
        ),
        make("p", { className: wrong ? "is-wrong" : "" }, unknown ? prediction.slice(2) : prediction),
        make(
          "p",
          {},
          make("strong", { id: badge ? "" : "open-count" }, open.toLocaleString("en")),
          ` of ${plural(model.gateCount, "filter")} open, ${percent(model.macs[image])} of the dense work`,
        ),
        further,
      ),
    );
  }

  image(view, previous) {
    const { model } = this;
    const note =
      previous === null || previous === view.image
        ? null
        : make(
            "p",
            { className: "note", id: "change" },
            `${plural(model.distance(view.image, previous), "filter")} changed from the image before`,
          );
    const { opened, closed } = view.unusual;
    const name = model.groupWords(view.group);
    const lists = [
      this.gateList(
        `Open, though rare for ${name}`,
        opened,
        (gate) => `opens for ${percent(model.rate(view.group, gate))}`,
      ),
      this.gateList(
        `Closed, though usual for ${name}`,
        closed,
        (gate) => `opens for ${percent(model.rate(view.group, gate))}`,
      ),
    ];
    const near = make(
      "div",
      { className: "strip" },
      ...model
        .nearest(view.image, NEAREST)
        .map(([image, distance]) => this.thumbnails.button(image, this.pickImage, differing(distance))),
    );
    byId("subject").replaceChildren(this.card(view.image, null, note));
    byId("differences").replaceChildren(
      make("h4", {}, "Images with the most similar gates"),
      near,
      make("div", { className: "pair" }, ...lists),
    );
    const odd = `${opened.length + closed.length} unusual for its class`;
    announce(
      `${this.thumbnails.describe(view.image)}: ${model.countOpen(view.image)} of ${plural(model.gateCount, "filter")} open, ${odd}`,
    );
  }

  images(view) {
    const { model } = this;
    const distance = model.distance(view.image, view.other);
    byId("subject").replaceChildren(
      make("div", { className: "pair" }, this.card(view.image, badge("A")), this.card(view.other, badge("B"))),
      make(
        "p",
        { className: "verdict" },
        make("strong", {}, plural(distance, "filter")),
        ` of ${model.gateCount.toLocaleString("en")} ${distance === 1 ? "differs" : "differ"}`,
      ),
    );
    const only = (state) => model.dependentGates().filter((gate) => view.state(gate) === state);
    const rate = (gate) => `opens for ${percent(model.openRate[gate])} of all`;
    byId("differences").replaceChildren(
      make(
        "div",
        { className: "pair" },
        this.gateList("Open for A only", only(STATE.onlyA), rate),
        this.gateList("Open for B only", only(STATE.onlyB), rate),
      ),
    );
    announce(
      `${this.thumbnails.describe(view.image)}, and ${this.thumbnails.describe(view.other)}: of the filters, ${differing(distance)}`,
    );
  }

  classes(view) {
    const { model, thumbnails } = this;
    const [nameA, nameB] = [view.a, view.b].map((group) => model.groupName(group));
    const sample = (group, letter) =>
      make(
        "div",
        { className: "class-sample" },
        make(
          "p",
          { className: "subject-name" },
          badge(letter),
          model.groupName(group),
          " ",
          make("small", {}, plural(model.groupCount[group], "image")),
        ),
        make(
          "div",
          { className: "strip" },
          ...(model.members.get(group) ?? []).slice(0, 5).map((image) => thumbnails.canvas(image)),
        ),
      );
    const gates = model.dependentGates();
    const moreFor = (sign) =>
      gates
        .filter((gate) => sign * view.difference(gate) >= DIFFER)
        .sort((g, h) => sign * (view.difference(h) - view.difference(g)));
    const [moreA, moreB] = [moreFor(1), moreFor(-1)];
    const known = Math.max(view.a, view.b) < model.unknownGroup;
    const overlap = known ? model.overlap[view.a * model.unknownGroup + view.b] / 65535 : null;
    const verdict = make(
      "p",
      { className: "verdict" },
      make("strong", {}, `${plural(moreA.length + moreB.length, "filter")} open more often for one than for the other`),
      overlap === null ? null : `; their open filters overlap by ${percent(overlap)}`,
    );
    const rates = (gate) => `${percent(model.rate(view.a, gate))} against ${percent(model.rate(view.b, gate))}`;
    byId("subject").replaceChildren(
      make("div", { className: "pair" }, sample(view.a, "A"), sample(view.b, "B")),
      verdict,
    );
    byId("differences").replaceChildren(
      make(
        "div",
        { className: "pair" },
        this.gateList(`More often open for ${nameA}`, moreA, rates),
        this.gateList(`More often open for ${nameB}`, moreB, rates),
      ),
    );
    announce(`${nameA} against ${nameB}: ${verdict.textContent}`);
  }

  gateList(title, gates, note) {
    const items = gates
      .slice(0, LISTED)
      .map((gate) =>
        make("li", {}, gateButton(this.model, gate, this.pickGate), make("span", { className: "note" }, note(gate))),
      );
    const rest =
      gates.length > LISTED
        ? make("p", { className: "note" }, `and ${(gates.length - LISTED).toLocaleString("en")} more, marked above`)
        : null;
    const body = items.length
      ? make("ul", { className: "gates" }, ...items)
      : make("p", { className: "note" }, "None.");
    return make("div", {}, make("h4", {}, `${title} (${gates.length.toLocaleString("en")})`), body, rest);
  }
}
