// The glance: that different images use different filters, before anything is picked.

const ROWS = { classes: 6, images: 2 }; // of the glance
const COLUMNS = 160;
const HINT = "Lines of one class stand together; pick a line to explore its image.";

/** The glance: a line of cells for a few images, the filters that vary most in forward order. */
class Glance {
  constructor(model, thumbnails, pick) {
    Object.assign(this, { model, thumbnails, pick });
    const gates = model.dependentGates();
    if (!gates.length) return;
    const evenness = (gate) => Math.abs(model.openRate[gate] - 0.5);
    this.gates = [...gates]
      .sort((a, b) => evenness(a) - evenness(b))
      .slice(0, COLUMNS)
      .sort((a, b) => a - b);
    const every = this.gates.length === gates.length;
    byId("glance-note").textContent = `${every ? "All" : "The"} ${plural(this.gates.length, "filter")} that ${
      every ? "depend on the image" : `vary most of the ${gates.length.toLocaleString("en")} that depend on the image`
    }, from the first layer on the left to the last. A filled cell is an open filter. ${HINT}`;
    this.canvases = this.images().map((image) => this.line(image));
    byId("glance").hidden = false;
    document.addEventListener("theme", () => this.draw());
    this.draw();
  }

  /** The first images of a few classes, evenly spread over the classes. */
  images() {
    const groups = [...this.model.members.keys()].sort((a, b) => a - b);
    const count = Math.min(ROWS.classes, groups.length);
    const per = Math.floor((ROWS.classes * ROWS.images) / count);
    return Array.from({ length: count }, (_, i) => groups[Math.floor((i * groups.length) / count)]).flatMap((group) =>
      this.model.members.get(group).slice(0, Math.min(per, 8)),
    );
  }

  line(image) {
    const canvas = make("canvas", { width: this.gates.length, height: 1, "aria-hidden": "true" });
    const { model } = this;
    const name = model.groupName(model.group[image]);
    const button = make(
      "button",
      {
        type: "button",
        className: "glance-line",
        onclick: () => this.pick(image),
        "data-group": model.group[image],
        "aria-label": `${this.thumbnails.describe(image)}: ${plural(model.countOpen(image), "filter")} open. Explore it`,
      },
      this.thumbnails.canvas(image),
      make("span", { className: "glance-name" }, name),
      canvas,
    );
    const last = byId("glance-rows").lastElementChild;
    if (last && last.dataset.group !== button.dataset.group) button.classList.add("new-class");
    byId("glance-rows").append(button);
    return [image, canvas];
  }

  draw() {
    const colours = themeColours();
    for (const [image, canvas] of this.canvases) {
      const context = canvas.getContext("2d");
      this.gates.forEach((gate, column) => {
        context.fillStyle = this.model.isOpen(image, gate) ? colours.open : colours.dot;
        context.fillRect(column, 0, 1, 1);
      });
    }
  }
}
