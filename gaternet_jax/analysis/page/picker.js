// Picking: thumbnails by class, and the choice of two classes.

const PAGE = 60; // thumbnails shown at once

class Picker {
  /** `pickImage` and `pickClasses` are called when someone chooses. */
  constructor(model, thumbnails, { pickImage, pickClasses }) {
    Object.assign(this, { model, thumbnails, pickImage, limit: PAGE, pressed: [] });
    this.grid = byId("thumbnails");
    this.choice = byId("class-choice");
    this.wrong = byId("only-wrong");
    this.fillChoices();
    for (const control of [this.choice, this.wrong]) {
      control.addEventListener("change", () => {
        this.limit = PAGE;
        this.show();
      });
    }
    byId("more").addEventListener("click", () => this.showMore());
    for (const select of [byId("class-a"), byId("class-b")]) {
      select.addEventListener("change", () =>
        pickClasses(Number(byId("class-a").value), Number(byId("class-b").value)),
      );
    }
    roveFocus(this.grid);
    this.show();
  }

  fillChoices() {
    const { model } = this;
    const option = (group, count) =>
      make("option", { value: group }, `${model.groupName(group)} (${count.toLocaleString("en")})`);
    const sampled = [...model.members].sort((a, b) => a[0] - b[0]);
    this.choice.append(
      make("option", { value: "all" }, `All classes (${model.count.toLocaleString("en")})`),
      ...sampled.map(([group, images]) => option(group, images.length)),
    );
    for (const select of [byId("class-a"), byId("class-b")]) {
      select.append(...model.groups.map((group) => option(group, model.groupCount[group])));
    }
    byId("class-b").value = model.groups[Math.min(1, model.groups.length - 1)];
  }

  /** The images of the chosen class; of all classes, one of each by turns. */
  wanted() {
    const { model } = this;
    const turns = (image) => this.thumbnails.place[image];
    const images =
      this.choice.value === "all"
        ? [...model.group.keys()].sort((a, b) => turns(a) - turns(b) || model.group[a] - model.group[b])
        : model.members.get(Number(this.choice.value));
    return this.wrong.checked ? images.filter((image) => model.isWrong(image)) : images;
  }

  show() {
    const images = this.wanted();
    const shown = images.slice(0, this.limit);
    this.grid.replaceChildren(...shown.map((image) => this.thumbnails.button(image, this.pickImage)));
    byId("pick-count").textContent = images.length
      ? `${shown.length.toLocaleString("en")} of ${plural(images.length, "image")}`
      : "No such image.";
    byId("more").hidden = shown.length === images.length;
    this.press(this.pressed);
  }

  showMore() {
    const first = this.limit;
    this.limit += 2 * PAGE;
    this.show();
    this.grid.children[first]?.focus();
  }

  /** Marks the picked images: {image: letter or ""}. */
  press(images) {
    this.pressed = images;
    for (const button of this.grid.children) {
      const at = images.indexOf(Number(button.dataset.image));
      button.setAttribute("aria-pressed", at >= 0);
      button.dataset.slot = at >= 0 && images.length > 1 ? "AB"[at] : "";
    }
    resetRoving(this.grid);
  }
}
