// The panel about one filter: how often it opens, for which classes and images, and what it does for accuracy.

const BARS = 12; // classes in a histogram: all, or as many of the highest rates, and a few of the lowest
const LOWEST = 4;
const EXAMPLES = 10; // images shown that open a filter, and that do not
const INFORMATIVE = 8;
const ABLATED = 5; // classes that a filter matters most to

const signed = (points) => `${points > 0 ? "+" : points < 0 ? "−" : ""}${Math.abs(100 * points).toFixed(1)}`;

/** A bar as a picture: its number stands beside it. */
function bar(rate, className = "") {
  const fill = make("span", { className: `bar-fill ${className}` });
  fill.style.width = `${100 * rate}%`;
  return make("span", { className: "bar", "aria-hidden": "true" }, fill);
}

class FilterPanel {
  /** `pickGate` and `pickImage` are called when someone chooses; `current()` gives the group of the image shown. */
  constructor(model, thumbnails, { pickGate, pickImage, current }) {
    Object.assign(this, { model, thumbnails, pickGate, pickImage, current });
    this.site = byId("site-choice");
    this.number = byId("filter-choice");
    model.sites.forEach((site, index) => this.site.append(make("option", { value: index }, site.name)));
    this.site.addEventListener("change", () => {
      this.number.value = 0;
      this.choose();
    });
    this.number.addEventListener("change", () => this.choose());
    byId("informative").append(this.informative());
  }

  choose() {
    const site = this.model.sites[Number(this.site.value)];
    const number = Math.max(0, Math.min(site.size - 1, Math.round(Number(this.number.value)) || 0));
    this.pickGate(site.offset + number);
  }

  /** The input-dependent filters that tell most about the class, as buttons. */
  informative() {
    const { model } = this;
    const known = model.dependentGates().filter((gate) => model.information[gate] > 0);
    if (!known.length) return make("p", { className: "note" }, "None: no filter depends on the image's class.");
    known.sort((a, b) => model.information[b] - model.information[a]);
    return make(
      "ul",
      { className: "gates" },
      ...known.slice(0, INFORMATIVE).map((gate) => {
        const [[group]] = model.groupsByRate(gate);
        const note = `${model.information[gate].toFixed(2)} bits, most often open for ${model.groupWords(group)}`;
        return make("li", {}, gateButton(model, gate, this.pickGate), make("span", { className: "note" }, note));
      }),
    );
  }

  show(gate) {
    const { model } = this;
    const site = model.sites[model.siteOf[gate]];
    this.site.value = model.siteOf[gate];
    Object.assign(this.number, { value: gate - site.offset, max: site.size - 1 });
    byId("filter-title").textContent = `Filter ${gate - site.offset} of ${site.name}`;
    byId("filter").replaceChildren(
      this.facts(gate),
      this.histogram(gate),
      ...this.ablation(gate),
      ...this.examples(gate),
    );
  }

  facts(gate) {
    const { model } = this;
    const kind = ["always closed", "depends on the image", "always open"][model.kind[gate]];
    const bits = model.information[gate];
    const facts = [
      ["Open for", `${percent(model.openRate[gate])} of images`],
      ["Kind", kind],
      ["Tells about the class", Number.isNaN(bits) ? "unknown: no classes" : `${bits.toFixed(3)} bits`],
    ];
    return make(
      "dl",
      { className: "filter-facts" },
      ...facts.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))),
    );
  }

  histogram(gate) {
    const { model } = this;
    const ordered =
      model.groups.length <= BARS + LOWEST
        ? model.groups.map((group) => [group, model.rate(group, gate)])
        : model.groupsByRate(gate);
    const cut = ordered.length > BARS + LOWEST;
    const row = ([group, rate]) =>
      make(
        "tr",
        { className: group === this.current() ? "current" : "" },
        make("th", { scope: "row" }, model.groupName(group)),
        make("td", {}, bar(rate)),
        make("td", {}, percent(rate)),
      );
    const gap = make(
      "tr",
      {},
      make("td", { colSpan: 3, className: "note" }, `… ${ordered.length - BARS - LOWEST} classes between …`),
    );
    const rows = cut ? [...ordered.slice(0, BARS).map(row), gap, ...ordered.slice(-LOWEST).map(row)] : ordered.map(row);
    const caption = make("caption", {}, "How often each class opens it");
    return make("table", { className: "histogram" }, caption, make("tbody", {}, ...rows));
  }

  ablation(gate) {
    const changes = this.model.ablationOf(gate);
    if (!changes || !changes.length) return [];
    const mean = (name) => changes.reduce((sum, change) => sum + change[name], 0) / changes.length;
    const size = ({ shut, open }) => Math.max(Math.abs(shut), Math.abs(open));
    const largest = [...changes].sort((a, b) => size(b) - size(a)).slice(0, ABLATED);
    const row = (name, shut, open, className = "") =>
      make(
        "tr",
        { className },
        make("th", { scope: "row" }, name),
        make("td", {}, signed(shut)),
        make("td", {}, signed(open)),
      );
    return [
      make(
        "table",
        { className: "ablation" },
        make("caption", {}, "Accuracy if it is forced, change in points"),
        make(
          "thead",
          {},
          make("tr", {}, ...["Class", "shut", "open"].map((name) => make("th", { scope: "col" }, name))),
        ),
        make(
          "tbody",
          {},
          row("mean of classes", mean("shut"), mean("open"), "total"),
          ...largest.map(({ group, shut, open }) => row(this.model.groupName(group), shut, open)),
        ),
      ),
    ];
  }

  /** Images of the sample that open the filter and that do not, taken evenly from the classes. */
  examples(gate) {
    const found = { open: [], closed: [] };
    for (let image = 0; image < this.model.count; image += 1) {
      found[this.model.isOpen(image, gate) ? "open" : "closed"].push(image);
    }
    const spread = (images) => {
      const step = Math.max(1, images.length / EXAMPLES);
      return Array.from({ length: Math.min(EXAMPLES, images.length) }, (_, i) => images[Math.floor(i * step)]);
    };
    return [
      ["open", "open it"],
      ["closed", "do not open it"],
    ].map(([state, words]) => {
      const title = make(
        "h4",
        {},
        `${found[state].length.toLocaleString("en")} of the ${plural(this.model.count, "image")} here ${words}`,
      );
      const strip = make("div", { className: "strip" });
      strip.append(...spread(found[state]).map((image) => this.thumbnails.button(image, this.pickImage)));
      return make("div", { "data-examples": state }, title, strip);
    });
  }
}

/** A button that shows a filter. */
function gateButton(model, gate, pick) {
  return make(
    "button",
    { type: "button", className: "gate", "data-gate": gate, onclick: () => pick(gate) },
    model.gateName(gate),
  );
}
